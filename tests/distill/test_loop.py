from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from tinyqa_ray import models, runs, shards, squad, storage
from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.loop import MODEL, STATE, adamw, build, linear_schedule, train, train_step
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.teacher_logits import FOLDER, TeacherLogitsReport, WindowWriter, window_files

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

    def checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        if metrics["step"] == self.step and not self.kept:
            raise KilledError
        super().checkpoint(folder, metrics)
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


@pytest.fixture(scope="module")
def windows(tiny_squad: str, tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished teacher-logits stage, made without Ray."""
    output = str(tmp_path_factory.mktemp("windows") / "out")
    config = TeacherLogitsConfig(
        data=tiny_squad,
        tokenizer=tiny_bert,
        model=(tiny_bert,),
        window=WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20),
    )
    with runs.stage(output, config, inputs=("data", "tokenizer", "model")) as stage:
        source = stage.path("_input.parquet")
        pq.write_table(squad.to_table(squad.read_squad(tiny_squad)), source)
        writer = WindowWriter(config)
        for shard in shards.cut([source], 3, stage.path(FOLDER), "arrow"):
            shards.work(shard, writer)
        stage.publish(
            TeacherLogitsReport(paragraphs=8, questions=24, windows=0, tokens=0, answerable_windows=0)
        )
    return output


@pytest.fixture
def config(windows: str, tiny_bert: str) -> DistillConfig:
    rows = len(WindowData(window_files(windows), 0))
    return DistillConfig(
        data=windows,
        student=tiny_bert,
        objective="prediction",
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
    state: dict[str, torch.Tensor] = models.load_qa_model(
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
    assert not equal(made, models.load_qa_model(tiny_bert).state_dict())
    assert len(models.load_tokenizer(str(tmp_path / f"step-{STEPS:09d}" / MODEL))) > 100
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
    taught = replace(config, objective="intermediate", student=still_bert, teacher=tiny_bert)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(taught, LocalSession(whole))
    with pytest.raises(KilledError):
        train(taught, DyingSession(broken, 6, kept=True))
    train(taught, LocalSession(broken))
    assert equal(weights(broken), weights(whole))
    assert not equal(weights(whole), models.load_qa_model(still_bert).state_dict())


def test_accumulation_changes_nothing_but_rounding(
    config: DistillConfig, still_bert: str, tmp_path: Path
) -> None:
    still = replace(config, student=still_bert, attention_dropout=0.0, head_dropout=0.0)
    made = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        train(replace(still, accumulation=parts), LocalSession(folder))
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


def test_loss_that_is_not_finite_stops_before_the_step_and_names_the_windows(
    config: DistillConfig, tmp_path: Path
) -> None:
    data = WindowData(window_files(config.data), 0)
    model = build(config)
    optimizer = adamw(model, config)
    with torch.no_grad():
        model.student.qa_outputs.weight.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = np.array([3, 1, 0, 2])
    with pytest.raises(RuntimeError) as caught:
        train_step(model, data, batch, optimizer, config, LocalSession(tmp_path))
    assert "stopped before the optimiser step" in str(caught.value)
    assert all(str(number) in str(caught.value) for number in data.window_ids(batch))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
    assert not optimizer.state


def rates(config: DistillConfig, warmup: float, steps: int) -> list[float]:
    """Learning rate of each step, and the one after the last."""
    config = replace(config, warmup=warmup, learning_rate=1.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = linear_schedule(optimizer, config, steps)
    found = [float(made.get_last_lr()[0])]
    for _ in range(steps):
        optimizer.step()
        made.step()
        found.append(float(made.get_last_lr()[0]))
    return found


def test_learning_rate_rises_and_falls_linearly(config: DistillConfig) -> None:
    assert rates(config, 0.2, 10) == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0]
    )
    assert rates(config, 0.0, 4) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert rates(config, 1.0, 2) == pytest.approx([0.5, 1.0, 0.0])


def test_only_matrices_decay(config: DistillConfig) -> None:
    model = build(config)
    groups = adamw(model, replace(config, weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert set(decay) == set(names.values())
    for name, value in decay.items():
        assert value == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


def test_checkpoint_that_is_not_whole_is_not_resumed(config: DistillConfig, tmp_path: Path) -> None:
    train(config, LocalSession(tmp_path / "whole"))
    half = tmp_path / "torn" / "step-000000006.tmp"
    half.mkdir(parents=True)
    (half / STATE).write_bytes(b"torn")
    train(config, LocalSession(tmp_path / "torn"))
    assert equal(weights(tmp_path / "torn"), weights(tmp_path / "whole"))
    assert storage.kind(str(half)) == "absent"
