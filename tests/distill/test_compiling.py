from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import fingerprint
from tinyqa_ray.distill import compiling
from tinyqa_ray.distill.batches import Batch, WindowData
from tinyqa_ray.distill.compiling import check_compiler
from tinyqa_ray.distill.loop import train
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.strategies import DataParallel
from tinyqa_ray.engines.bucketed import BUCKET
from tinyqa_ray.teacher_logits.window_dataset import window_files

STEPS = 6
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")


@pytest.fixture
def config(tiny_windows: str, tiny_bert: str, tmp_path: Path) -> DistillConfig:
    """A student without dropout, whose draws are others when it is compiled."""
    student = tiny.save_qa_model(tmp_path / "student", layers=1, seed=1)
    file = Path(student) / "config.json"
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **rates}))
    rows = len(WindowData(window_files(tiny_windows), 0))
    return DistillConfig(
        data=tiny_windows,
        student=student,
        teacher=tiny_bert,
        objective=("prediction",),
        batch_size=4,
        epochs=STEPS * 4 / rows,
        log_steps=1,
        threads=1,
    )


def losses(config: DistillConfig, folder: Path) -> list[float]:
    train(config, LocalSession(folder / "run"), str(folder / "metrics.jsonl"))
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("objective", ["prediction", "intermediate"])
def test_compiled_models_lose_what_eager_ones_do(
    config: DistillConfig, tmp_path: Path, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = replace(config, objective=(objective,), objective_weights=None)
    eager = losses(taught, tmp_path / "eager")
    begun: list[str] = []
    compile_module = torch.nn.Module.compile

    def noted(module: torch.nn.Module, **options: Any) -> None:
        begun.append(type(module).__name__)
        compile_module(module, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", noted)
    compiled = losses(replace(taught, compile=True), tmp_path / "compiled")
    assert len(begun) == (1 if objective == "prediction" else 2)
    assert len(eager) == STEPS
    assert compiled == pytest.approx(eager, rel=1e-5, abs=1e-5)
    names = []
    for kind in ("eager", "compiled"):
        file = tmp_path / kind / "run" / f"step-{STEPS:09d}" / "optimizer.pt"
        names.append(set(torch.load(file, weights_only=True)["trainee"]))
    assert names[0] == names[1]


def test_compiled_models_read_few_lengths(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    forward = DataParallel.forward

    def noted(strategy: DataParallel, batch: Batch, *, last: bool) -> Any:
        seen.add(batch.input_ids.shape[1])
        return forward(strategy, batch, last=last)

    monkeypatch.setattr(DataParallel, "forward", noted)
    monkeypatch.setattr("tinyqa_ray.distill.loop.compile_models", lambda module: None)
    monkeypatch.setattr("tinyqa_ray.distill.loop.check_compiler", lambda device: None)
    train(config, LocalSession(tmp_path / "a"))
    assert len(seen) > 1
    seen.clear()
    train(replace(config, compile=True), LocalSession(tmp_path / "b"))
    longest = WindowData(window_files(config.data), 0).longest
    assert seen == {min(BUCKET, longest)}


def test_machine_without_a_compiler_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(InputError) as refused:
        check_compiler(torch.device("cpu"))
    assert str(refused.value) == (
        "compile needs a C++ compiler on every machine that trains; install g++, set CXX, or leave "
        "--compile out"
    )


def test_run_goes_on_compiled_or_not(config: DistillConfig) -> None:
    assert fingerprint(replace(config, compile=True)) == fingerprint(config)
