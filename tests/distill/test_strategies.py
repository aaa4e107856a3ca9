from __future__ import annotations

import importlib.util
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import group
import numpy as np
import pytest
import tiny
import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.configs.distill import Precision
from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.loop import MODEL
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits.window_dataset import window_files

STEPS = 20
# Softmax cancels what these add to every token: their gradient is rounding alone, which AdamW scales up.
UNSEEN = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="the extra 'deepspeed' is not installed"
)
OBJECTIVES: dict[str, dict[str, Any]] = {
    "labels": {"objective": ("labels",)},
    "layers": {"objective": ("intermediate",)},
    "relations": {"objective": ("relations",)},
    "sum": {"objective": ("intermediate", "relations", "prediction"), "distillation_weight": 0.5},
}


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student without dropout, so that any number of workers trains it alike."""
    folder = tiny.save_qa_model(tmp_path_factory.mktemp("still") / "m", layers=1, seed=1)
    file = Path(folder) / "config.json"
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return str(folder)


@pytest.fixture(scope="module")
def config(tiny_windows: str, still: str, tiny_bert: str) -> DistillConfig:
    windows = len(WindowData(window_files(tiny_windows), 0))
    return DistillConfig(
        data=tiny_windows,
        student=still,
        teacher=tiny_bert,
        objective=("prediction",),
        batch_size=8,
        epochs=STEPS * 8 / windows,
        learning_rate=1e-3,
        threads=1,
    )


def trained(config: DistillConfig, workers: int, folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the student that a group of workers makes."""
    group.run(workers, group.train_in_group, config, folder)
    (last,) = folder.glob("step-*")
    assert last.name == f"step-{STEPS:09d}"
    return dict(pretrained.load_qa_model(str(last / MODEL)).state_dict())


def check_gradients(configs: list[DistillConfig], workers: int, folder: Path) -> None:
    """Compare the gradients of a group of workers with those of one process."""
    rows = np.array([7, 2, 11, 0, 9, 4, 1, 6])
    group.run(workers, group.gradients, configs, rows, folder)
    for number, config in enumerate(configs):
        alone = replace(config, workers=1, min_workers=None, gradient_accumulation_steps=1)
        expected = group.gradient(alone, rows, LocalSession(folder))
        found = torch.load(folder / f"{number}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        assert scale > 1e-3
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * max(1.0, scale), msg=name)


def test_two_workers_give_the_gradients_of_one(config: DistillConfig, tmp_path: Path) -> None:
    taught = [replace(config, objective_weights=None, **options) for options in OBJECTIVES.values()]
    split = [
        replace(each, workers=2, gradient_accumulation_steps=parts) for each in taught for parts in (1, 2)
    ]
    check_gradients(split, 2, tmp_path)


def test_touched_rows_give_the_gradients_of_all_rows_and_half_precision_nearly_those(
    config: DistillConfig, tmp_path: Path
) -> None:
    """Of the rows, bit for bit: two workers add up in one order only."""
    config = replace(config, workers=2, gradient_accumulation_steps=2)
    sent = [
        config,
        replace(config, embedding_gradients="dense"),
        replace(config, gradient_compression="fp16"),
        replace(config, gradient_compression="bf16"),
    ]
    group.run(2, group.gradients, sent, np.array([7, 2, 11, 0, 9, 4, 1, 6]), tmp_path)
    few, dense, *halves = (torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(4))
    assert few.keys() == dense.keys()
    (name,) = (name for name in few if name.endswith("word_embeddings.weight"))
    touched = few[name].any(1)
    assert 0 < touched.sum() < len(touched)
    assert all(torch.equal(few[name], dense[name]) for name in few)
    scale = max(float(gradient.abs().max()) for gradient in dense.values())
    for half, limit in zip(halves, (1e-3, 8e-3), strict=True):
        errors = [float((half[name] - gradient).abs().max()) for name, gradient in dense.items()]
        assert 0 < max(errors) < limit * scale


def test_host_waits_for_nothing_when_workers_step_and_only_rows_of_the_batch_are_sent(
    config: DistillConfig, tmp_path: Path
) -> None:
    """In fp16 scale and overflow stay on the device; of the embeddings every worker knows the rows."""
    config = replace(config, workers=2, gradient_accumulation_steps=2)
    rows = np.array([7, 2, 11, 0, 9, 4, 1, 6])
    configs = [replace(config, precision=precision) for precision in get_args(Precision)[1:]]
    group.run(2, group.reads_in_a_step, configs, rows, tmp_path)
    width = pretrained.load_qa_model(config.student).config.hidden_size
    words = WindowData(window_files(config.data), 0).words(rows)
    for number, rank in itertools.product(range(len(configs)), range(2)):
        found = torch.load(tmp_path / f"{number}-{rank}.pt", weights_only=True)
        assert found == {"reads": [], "sent": [len(words) * width, 2]}, configs[number].precision


def test_compressed_training_resumes_bit_for_bit(config: DistillConfig, tmp_path: Path) -> None:
    """Three workers: the order in which their gradients are added up counts as well."""
    config = replace(
        config, workers=3, batch_size=9, epochs=config.epochs * 9 / 8, checkpoint_steps=7, powersgd_rank=2
    )
    ways: tuple[Literal["none", "bf16", "powersgd"], ...] = ("none", "bf16", "powersgd")
    configs = [replace(config, gradient_compression=way) for way in ways]
    group.run(3, group.train_and_resume, configs, tmp_path, 14)
    made = []
    for number in range(len(configs)):
        whole, resumed = (
            pretrained.load_qa_model(
                str(tmp_path / f"{number}-{run}" / f"step-{STEPS:09d}" / MODEL)
            ).state_dict()
            for run in ("whole", "half")
        )
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
        made.append(whole["qa_outputs.weight"])
    assert not any(torch.equal(made[0], other) for other in made[1:])


def test_compressed_training_goes_on_with_other_workers_and_another_rank(
    config: DistillConfig, tmp_path: Path
) -> None:
    config = replace(config, workers=2, gradient_compression="powersgd", powersgd_rank=2, checkpoint_steps=7)
    with pytest.raises(Exception, match="killed at 7"):
        group.run(2, group.train_until, config, tmp_path, 7)
    with pytest.raises(Exception, match="killed at 14"):
        group.run(3, group.train_until, replace(config, workers=4, min_workers=2), tmp_path, 14)
    trained(replace(config, powersgd_rank=3), 2, tmp_path)


def test_frozen_word_embeddings_stay_as_they_are(config: DistillConfig, tmp_path: Path) -> None:
    made = trained(replace(config, workers=2, freeze_embeddings=True), 2, tmp_path)
    start = pretrained.load_qa_model(config.student).state_dict()
    same = {name for name, tensor in made.items() if torch.equal(tensor, start[name])}
    assert {name for name in same if "embeddings" in name} == {
        name for name in made if name.endswith("word_embeddings.weight")
    }


def test_workers_that_do_not_divide_the_batch_still_give_its_gradients(
    config: DistillConfig, tmp_path: Path
) -> None:
    """An elastic run may have three of its four workers."""
    check_gradients([replace(config, workers=4, min_workers=2, gradient_accumulation_steps=2)], 3, tmp_path)


@pytest.fixture(scope="module")
def ddp(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights that two workers make with two micro-batches a step."""
    made = trained(
        replace(config, workers=2, gradient_accumulation_steps=2), 2, tmp_path_factory.mktemp("ddp")
    )
    start = pretrained.load_qa_model(config.student).state_dict()
    assert max(float((tensor - start[name]).abs().max()) for name, tensor in made.items()) > 1e-3
    return made


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("strategy", ["zero1", "zero2"])
def test_zero_gives_the_weights_of_ddp(
    config: DistillConfig, ddp: dict[str, torch.Tensor], tmp_path: Path, strategy: Literal["zero1", "zero2"]
) -> None:
    found = trained(replace(config, workers=2, gradient_accumulation_steps=2, strategy=strategy), 2, tmp_path)
    for name, tensor in ddp.items():
        if not name.endswith(UNSEEN):
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-5, msg=name)


@pytest.mark.slow
@needs_deepspeed
def test_zero_resumes_bit_for_bit_and_only_with_its_number_of_workers(
    config: DistillConfig, tmp_path: Path
) -> None:
    config = replace(config, workers=2, strategy="zero2", checkpoint_steps=7)
    whole = trained(config, 2, tmp_path / "whole")
    half = tmp_path / "half"
    with pytest.raises(Exception, match="killed at 14"):
        group.run(2, group.train_until, config, half, 14)
    with pytest.raises(Exception, match="of 2 workers, and cannot be continued with 1"):
        group.run(1, group.train_in_group, config, half)
    resumed = trained(config, 2, half)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
@needs_deepspeed
def test_zero_trains_in_bf16(config: DistillConfig, tmp_path: Path) -> None:
    config = replace(config, workers=2, strategy="zero1", precision="bf16")
    made = trained(config, 2, tmp_path)
    start = pretrained.load_qa_model(config.student).state_dict()
    assert any(float((tensor - start[name]).abs().max()) > 1e-3 for name, tensor in made.items())
    assert all(tensor.dtype == torch.float32 for tensor in made.values())


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.skipif(not processor.has_bf16(), reason="this processor lacks bf16")
def test_zero_goes_on_in_its_own_precision_only(
    config: DistillConfig,
    tmp_path: Path,
) -> None:
    config = replace(config, workers=1, strategy="zero1", checkpoint_steps=7)
    with pytest.raises(Exception, match="killed at 14"):
        group.run(1, group.train_until, config, tmp_path, 14)
    lower = replace(config, precision="bf16")
    with pytest.raises(
        Exception, match="in fp32, and cannot be continued in bf16; run with --precision fp32"
    ):
        group.run(1, group.train_in_group, lower, tmp_path)
    trained(config, 1, tmp_path)


@pytest.mark.parametrize(
    "option",
    [{"gradient_compression": "bf16"}, {"embedding_gradients": "rows"}, {"embedding_gradients": "dense"}],
)
def test_how_gradients_are_exchanged_is_for_ddp(config: DistillConfig, option: dict[str, Any]) -> None:
    """Under ZeRO they would do nothing."""
    ((name, value),) = option.items()
    with pytest.raises(InputError, match=f"{name} '{value}' .* DeepSpeed exchanges gradients by itself"):
        replace(config, strategy="zero1", **option)


def test_elastic_zero_and_too_few_workers_are_refused(config: DistillConfig) -> None:
    with pytest.raises(InputError, match="DeepSpeed's state is bound to its number of workers"):
        replace(config, strategy="zero1", workers=2, min_workers=1)
    with pytest.raises(InputError, match="min_workers 4 is above workers 2"):
        replace(config, workers=2, min_workers=4)
