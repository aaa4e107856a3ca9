from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.configs.distill import Precision
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import loop
from tinyqa_ray.distill.batches import Batch, Order, WindowData
from tinyqa_ray.distill.feed import step_input
from tinyqa_ray.distill.layers import Terms
from tinyqa_ray.distill.loop import FORMAT, MODEL, STATE, build, rate_factor, train, train_step
from tinyqa_ray.distill.metrics_log import MetricsLog
from tinyqa_ray.distill.precision import OVERFLOWS, NotFiniteError
from tinyqa_ray.distill.session import LocalSession, Write
from tinyqa_ray.distill.strategies import OPTIMIZER, DataParallel, adamw
from tinyqa_ray.distill.taken import LateFigures, Taken
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits.window_dataset import window_files

STEPS = 10
# Softmax cancels what these add to every token: their gradient is rounding alone, which AdamW scales up.
UNSEEN = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")


class KilledError(Exception):
    pass


class DyingSession(LocalSession):
    """Dies at its checkpoint of ``step``: before the checkpoint is kept, or after."""

    def __init__(self, folder: Path, step: int, *, kept: bool) -> None:
        super().__init__(folder)
        self.step, self.kept = step, kept

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        if metrics["step"] == self.step and not self.kept:
            raise KilledError
        super().checkpoint(write, metrics)
        if metrics["step"] == self.step:
            raise KilledError


@pytest.fixture(scope="module")
def still_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student without any dropout."""
    folder = tiny.save_qa_model(tmp_path_factory.mktemp("still") / "m", layers=1, seed=1)
    file = Path(folder) / "config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "hidden_dropout_prob": 0.0}))
    return str(folder)


@pytest.fixture
def config(tiny_windows: str, tiny_bert: str) -> DistillConfig:
    rows = len(WindowData(window_files(tiny_windows), 0))
    return DistillConfig(
        data=tiny_windows,
        student=tiny_bert,
        objective=("prediction",),
        distillation_weight=0.5,
        batch_size=4,
        epochs=STEPS * 4 / rows,
        learning_rate=1e-3,
        head_dropout=0.1,
        checkpoint_steps=3,
        log_steps=2,
        threads=1,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = pretrained.load_qa_model(
        str(next(folder.glob("step-*")) / MODEL)
    ).state_dict()
    return state


def rows(file: Path) -> list[dict[str, float]]:
    kept = ("step", "steps", "loss", "prediction", "label", "grad_norm", "learning_rate")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: line[name] for name in kept} for line in lines]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_run_ends_with_a_model_that_changed_and_a_row_each_log_step(
    config: DistillConfig, tiny_bert: str, tmp_path: Path
) -> None:
    train(config, LocalSession(tmp_path), str(tmp_path / "metrics.jsonl"))
    assert [path.name for path in tmp_path.glob("step-*")] == [f"step-{STEPS:09d}"]
    made = weights(tmp_path)
    assert not equal(made, pretrained.load_qa_model(tiny_bert).state_dict())
    assert len(pretrained.load_tokenizer(str(tmp_path / f"step-{STEPS:09d}" / MODEL))) > 100
    logged = rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in logged] == [2, 4, 6, 8, 10]
    assert all(row["loss"] == row["prediction"] + row["label"] for row in logged)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("step", [3, 6, STEPS])
def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    config: DistillConfig, tmp_path: Path, step: int, kept: bool
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(config, LocalSession(whole), str(whole / "metrics.jsonl"))
    with pytest.raises(KilledError):
        train(config, DyingSession(broken, step, kept=kept), str(broken / "metrics.jsonl"))
    train(config, LocalSession(broken), str(broken / "metrics.jsonl"))
    assert equal(weights(broken), weights(whole))
    assert rows(broken / "metrics.jsonl") == rows(whole / "metrics.jsonl")


def test_resumed_layer_distillation_still_distils(
    config: DistillConfig, still_bert: str, tiny_bert: str, tmp_path: Path
) -> None:
    taught = replace(config, objective=("intermediate",), student=still_bert, teacher=tiny_bert)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(taught, LocalSession(whole))
    with pytest.raises(KilledError):
        train(taught, DyingSession(broken, 6, kept=True))
    train(taught, LocalSession(broken))
    assert equal(weights(broken), weights(whole))
    assert not equal(weights(whole), pretrained.load_qa_model(still_bert).state_dict())


def test_accumulation_changes_nothing_but_rounding(
    config: DistillConfig, still_bert: str, tmp_path: Path
) -> None:
    still = replace(config, student=still_bert, attention_dropout=0.0, head_dropout=0.0)
    made = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        train(replace(still, gradient_accumulation_steps=parts), LocalSession(folder))
        made.append(weights(folder))
    for name, tensor in made[0].items():
        if not name.endswith(UNSEEN):
            torch.testing.assert_close(made[1][name], tensor, rtol=0, atol=1e-5)


def test_same_seed_gives_the_same_weights_and_another_gives_others(
    config: DistillConfig, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(replace(config, seed=seed), LocalSession(tmp_path / name))
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Make a student's weights NaN just before the forward of one step, counted from 1."""
    forward, begun = DataParallel.forward, itertools.count(1)

    def poisoned(strategy: DataParallel, batch: Batch, *, last: bool) -> Any:
        if next(begun) == step:
            with torch.no_grad():
                strategy.module.student.qa_outputs.weight.fill_(float("nan"))
        return forward(strategy, batch, last=last)

    monkeypatch.setattr(DataParallel, "forward", poisoned)


@pytest.mark.parametrize("bad", [5, 6, STEPS])  # within, at, and after the last interval of checkpoints
def test_loss_that_is_not_finite_ends_the_run_before_a_checkpoint_holds_it(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    poison(monkeypatch, bad)
    with pytest.raises(NotFiniteError) as caught:
        train(config, LocalSession(tmp_path / "run"), str(tmp_path / "metrics.jsonl"))
    data = WindowData(window_files(config.data), 0)
    batch = Order(data.lengths, config.batch_size, config.epochs, config.seed).batch(bad - 1)
    message = str(caught.value)
    assert message.startswith(f"step {bad} of {STEPS}: the loss is not finite (prediction nan, label nan)")
    assert all(str(number) in message for number in data.window_ids(batch))
    kept = (bad - 1) // config.checkpoint_steps * config.checkpoint_steps
    assert [path.name for path in (tmp_path / "run").iterdir()] == [f"step-{kept:09d}"]
    state = torch.load(tmp_path / "run" / f"step-{kept:09d}" / OPTIMIZER, weights_only=True)["trainee"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "metrics.jsonl"))


def test_gradient_that_is_not_finite_ends_the_run_by_name(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the loss is still a number."""
    backward = DataParallel.backward

    def broken(strategy: DataParallel, loss: torch.Tensor, *, last: bool) -> None:
        backward(strategy, loss, last=last)
        strategy.module.student.qa_outputs.weight.grad.fill_(float("inf"))

    monkeypatch.setattr(DataParallel, "backward", broken)
    with pytest.raises(NotFiniteError, match=rf"step 1 of {STEPS}: the gradient's norm is inf \(prediction "):
        train(config, LocalSession(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_figures_of_a_step_are_read_when_the_next_is_launched_and_before_a_checkpoint(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    """A host that reads the loss of the step it just launched waits for the device."""
    seen: list[str] = []
    launch, figures = loop.train_step, Taken.figures
    numbers: dict[int, int] = {}

    def launched(*given: Any) -> Taken:
        taken = launch(*given)
        numbers[id(taken)] = len(numbers) + 1
        kept.append(taken)
        seen.append(f"launch {len(numbers)}")
        return taken

    def read(taken: Taken) -> Any:
        seen.append(f"read {numbers[id(taken)]}")
        return figures(taken)

    kept: list[Taken] = []  # so that no two have one id
    monkeypatch.setattr(loop, "train_step", launched)
    monkeypatch.setattr(Taken, "figures", read)
    train(replace(config, checkpoint_steps=4, precision=precision), LocalSession(tmp_path))
    wanted = ["launch 1", "launch 2", "read 1", "launch 3", "read 2", "launch 4", "read 3", "read 4"]
    assert seen[:10] == [*wanted, "launch 5", "launch 6"]
    assert seen[-2:] == ["read 9", "read 10"]


def rates(warmup_ratio: float, steps: int) -> list[float]:
    """Share of the learning rate at each step, and of the one after the last."""
    return [rate_factor(warmup_ratio, step, steps) for step in range(steps + 1)]


def test_learning_rate_rises_and_falls_linearly() -> None:
    assert rates(0.2, 10) == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0]
    )
    assert rates(0.0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(1.0, 2) == pytest.approx([0.5, 1.0, 0.0])


def test_only_matrices_decay(config: DistillConfig) -> None:
    model = build(config)
    groups = adamw(model, replace(config, weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert set(decay) == set(names.values())
    for name, value in decay.items():
        assert value == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


def test_run_that_died_after_its_last_checkpoint_has_its_rows_again(
    config: DistillConfig, tmp_path: Path
) -> None:
    file = tmp_path / "metrics.jsonl"
    train(config, LocalSession(tmp_path / "run"), str(file))
    rows = file.read_text()
    file.write_text(rows.splitlines(keepends=True)[0])
    train(config, LocalSession(tmp_path / "run"), str(file))
    assert file.read_text() == rows


def test_checkpoint_that_is_not_whole_is_not_resumed(config: DistillConfig, tmp_path: Path) -> None:
    train(config, LocalSession(tmp_path / "whole"))
    half = tmp_path / "torn" / "step-000000006.tmp"
    half.mkdir(parents=True)
    (half / STATE).write_bytes(b"torn")
    train(config, LocalSession(tmp_path / "torn"))
    assert equal(weights(tmp_path / "torn"), weights(tmp_path / "whole"))
    assert storage.kind(str(half)) == "absent"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_resumes_bit_for_bit(config: DistillConfig, tmp_path: Path, precision: str) -> None:
    lower = replace(config, precision=precision)  # type: ignore[arg-type]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(lower, LocalSession(whole), str(whole / "metrics.jsonl"))
    with pytest.raises(KilledError):
        train(lower, DyingSession(broken, 6, kept=True))
    train(lower, LocalSession(broken))
    assert equal(weights(broken), weights(whole))
    assert not equal(weights(whole), pretrained.load_qa_model(config.student).state_dict())
    scales = [json.loads(line).get("loss_scale") for line in (whole / "metrics.jsonl").open()]
    assert all(scale is not None and scale >= 1 for scale in scales) == (precision == "fp16")


def test_bf16_on_a_cpu_attends_in_fp32_and_multiplies_in_bf16(
    config: DistillConfig, monkeypatch: pytest.MonkeyPatch, has: Callable[..., None]
) -> None:
    has("bf16")
    seen = []
    attention = functional.scaled_dot_product_attention

    def noted(*given: Any, **options: Any) -> torch.Tensor:
        seen.append({tensor.dtype for tensor in given})
        return attention(*given, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", noted)
    data = WindowData(window_files(config.data), 0)
    rows = np.arange(4)
    full = sum(build(config).eval()(data.batch(rows, rows)).values())
    seen.clear()
    model = build(config, dtype=torch.bfloat16).eval()
    products = []
    model.student.qa_outputs.register_forward_hook(lambda *given: products.append(given[2].dtype))
    lower = sum(model(data.batch(rows, rows)).values())
    assert seen, "this is how the model attends"
    assert all(dtypes == {torch.float32} for dtypes in seen)
    assert products == [torch.bfloat16]
    torch.testing.assert_close(lower, full, rtol=0.05, atol=1e-3)


def test_fp16_overflow_skips_the_step_and_lowers_the_scale(config: DistillConfig, tmp_path: Path) -> None:
    session = LocalSession(tmp_path)
    model = build(config, dtype=torch.float16)
    strategy = DataParallel(model, config, session)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strategy.scaler = torch.amp.GradScaler("cpu", 2.0**32)
    data = WindowData(window_files(config.data), 0)
    found = train_step(strategy, step_input(data, np.arange(4), session, 1), session, 1e-3).figures()
    assert not np.isfinite(found.norm)
    assert found.loss_scale == strategy.loss_scale == 2.0**31
    assert equal(dict(model.state_dict()), before)
    for _ in range(40):
        train_step(strategy, step_input(data, np.arange(4), session, 1), session, 1e-3)
    assert strategy.loss_scale is not None
    assert strategy.loss_scale < 2.0**31
    assert not equal(dict(model.state_dict()), before)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_row_of_a_step_has_its_own_scale_though_it_is_logged_after_the_next(
    config: DistillConfig, tmp_path: Path
) -> None:
    session, log = LocalSession(tmp_path), MetricsLog(None)
    strategy = DataParallel(build(config, dtype=torch.float16), config, session)
    strategy.scaler = torch.amp.GradScaler("cpu", 2.0**60)
    data = WindowData(window_files(config.data), 0)
    figures = LateFigures(log, strategy, data, steps=4, log_steps=1)
    for step in range(1, 5):
        figures.add(step, train_step(strategy, step_input(data, np.arange(4), session, 1), session, 1e-3), 0)
    figures.settle()
    assert [row["loss_scale"] for row in log.rows] == [2.0**59, 2.0**58, 2.0**57, 2.0**56]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_twenty_overflows_in_a_row_end_the_run_with_the_windows_named(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Also where the loss alone is infinite; one finite step in between starts the count anew."""
    data = WindowData(window_files(config.data), 0)
    session = LocalSession(tmp_path)
    model = build(config, dtype=torch.float16)
    strategy = DataParallel(model, config, session)
    forward = model.forward

    def overflowing(batch: Batch) -> Terms:
        terms = forward(batch)
        name = next(iter(terms))
        wrong = terms[name] + float("inf") if what == "loss" else terms[name] * 1e30
        return {**terms, name: wrong}

    batch = np.array([3, 1, 0, 2])
    monkeypatch.setattr(model, "forward", overflowing)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figures = LateFigures(MetricsLog(None), strategy, data, steps=100, log_steps=100)
    for step in range(1, OVERFLOWS):
        figures.add(step, train_step(strategy, step_input(data, batch, session, 1), session, 1e-3), 1e-3)
    figures.settle()
    assert strategy.loss_scale == 2.0 ** (16 - OVERFLOWS + 1)
    assert strategy.overflows.in_a_row == OVERFLOWS - 1
    assert equal(dict(model.state_dict()), before)
    monkeypatch.setattr(model, "forward", forward)
    figures.add(OVERFLOWS, train_step(strategy, step_input(data, batch, session, 1), session, 1e-3), 1e-3)
    figures.settle()
    assert strategy.overflows.in_a_row == 0
    monkeypatch.setattr(model, "forward", overflowing)
    monkeypatch.setattr(loop, "build", lambda *_: model)
    long = replace(config, epochs=40)
    with pytest.raises(
        NotFiniteError, match=r"step 20 of .*: fp16 overflowed in 20 steps in a row"
    ) as caught:
        train(long, LocalSession(tmp_path / "run"))
    last = Order(data.lengths, long.batch_size, long.epochs, long.seed).batch(OVERFLOWS - 1)
    assert all(str(number) in str(caught.value) for number in data.window_ids(last))


@pytest.mark.parametrize(("first", "then"), [("fp32", "fp16"), ("fp16", "bf16"), ("fp16", "fp32")])
def test_run_goes_on_in_another_precision(
    config: DistillConfig, tmp_path: Path, has: Callable[..., None], first: Precision, then: Precision
) -> None:
    has("bf16")
    with pytest.raises(KilledError):
        train(replace(config, precision=first), DyingSession(tmp_path, 6, kept=True))
    train(replace(config, precision=then), LocalSession(tmp_path), str(tmp_path / "metrics.jsonl"))
    scales = [json.loads(line).get("loss_scale") for line in (tmp_path / "metrics.jsonl").open()][3:]
    assert all((scale is not None) == (then == "fp16") for scale in scales)
    assert (tmp_path / f"step-{STEPS:09d}" / MODEL).is_dir()


def test_scale_and_overflows_in_a_row_are_in_checkpoints(config: DistillConfig, tmp_path: Path) -> None:
    session = LocalSession(tmp_path)
    written, read = (DataParallel(build(config, dtype=torch.float16), config, session) for _ in range(2))
    written.scaler = torch.amp.GradScaler("cpu", 2.0**60)
    data = WindowData(window_files(config.data), 0)
    figures = LateFigures(MetricsLog(None), written, data, steps=100, log_steps=100)
    for step in range(1, 4):
        figures.add(
            step, train_step(written, step_input(data, np.arange(4), session, 1), session, 1e-3), 1e-3
        )
    figures.settle()
    written.save(tmp_path)
    read.load(tmp_path)
    assert (read.loss_scale, read.overflows.in_a_row) == (2.0**57, 3)


def test_checkpoint_of_another_version_is_refused_by_its_format(
    config: DistillConfig, tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(config, DyingSession(tmp_path, 3, kept=True))
    file = tmp_path / "step-000000003" / STATE
    torch.save({**torch.load(file, weights_only=True), "format": FORMAT + 1}, file)
    with pytest.raises(InputError, match=f"has format {FORMAT + 1}, .* continues format {FORMAT}"):
        train(config, LocalSession(tmp_path))


def test_workers_of_one_machine_share_its_cores(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of other machines have cores of their own."""

    class ToldError(Exception):
        pass

    def told(workers: int) -> int:
        raise ToldError(f"{workers} workers")

    session = LocalSession(tmp_path)
    session.world_size, session.local_size = 8, 2
    monkeypatch.setattr(loop, "cores", told)
    with pytest.raises(ToldError, match="2 workers"):
        train(replace(config, threads=0), session)


class WarnedSession(LocalSession):
    """Is told once, when it first asks, that its node will be taken away."""

    kept: list[int]
    asked = 0

    def is_warned(self) -> bool:
        self.asked += 1
        return self.asked == 1

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        self.kept = [*getattr(self, "kept", []), metrics["step"]]
        super().checkpoint(write, metrics)


def test_notice_that_a_node_goes_away_makes_a_checkpoint(config: DistillConfig, tmp_path: Path) -> None:
    session = WarnedSession(tmp_path)
    train(replace(config, checkpoint_steps=1000, log_steps=2), session)
    assert session.kept[0] == 2
    assert len(session.kept) == 2, "one for the notice, and the last"
