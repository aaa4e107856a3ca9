from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import group
import numpy as np
import pytest
import tiny
import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.dev_scores import SCORE, DevScores, _part
from tinyqa_ray.distill.loop import MODEL, train
from tinyqa_ray.distill.session import LocalSession, Write
from tinyqa_ray.evaluate.work import measured
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits.window_dataset import window_files, window_sizes

STEPS = 10
MEASURED = (("measure", ""), ("keep", " with its score"))


class NotingSession(LocalSession):
    """Keeps the metrics of its checkpoints, and every student that was saved."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.metrics: list[dict[str, Any]] = []
        self.figures: dict[int, dict[str, Any]] = {}
        self.measure_with: DistillConfig | None = None

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        super().checkpoint(write, metrics)
        self.metrics.append(metrics)
        if self.measure_with is not None:
            model = str(self.folder / f"step-{metrics['step']:09d}" / MODEL)
            self.figures[metrics["step"]] = measured_alone(model, self.measure_with)


@pytest.fixture(scope="module")
def config(
    tiny_windows: str, tiny_bert: str, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory
) -> DistillConfig:
    """With hooks of all kinds: dropout before the head, a teacher whose layers are compared."""
    rows = len(WindowData(window_files(tiny_windows), 0))
    return DistillConfig(
        data=tiny_windows,
        student=tiny.save_qa_model(tmp_path_factory.mktemp("student") / "m", layers=1, seed=1),
        teacher=tiny_bert,
        objective=("intermediate", "prediction"),
        dev=tiny_squad,
        batch_size=4,
        epochs=STEPS * 4 / rows,
        learning_rate=1e-2,
        head_dropout=0.1,
        checkpoint_steps=4,
        threads=1,
    )


def measured_alone(model: str, config: DistillConfig) -> dict[str, Any]:
    """Figures of a model folder, as ``tinyqa evaluate`` has them."""
    assert config.dev is not None
    return measured(model, config.dev, window_sizes(config.data), threads=1)


def dev_files(folder: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("step-*.json"))]
    return {row.pop("step"): row for row in found}


def test_every_checkpoint_has_the_figures_of_its_model_and_its_score(
    config: DistillConfig, tmp_path: Path
) -> None:
    session = NotingSession(tmp_path / "run")
    session.measure_with = config
    train(config, session, dev_folder=str(tmp_path / "dev"))
    assert sorted(session.figures) == [4, 8, STEPS]
    assert dev_files(tmp_path / "dev") == session.figures
    assert [row["dev_best_f1"] for row in session.metrics] == [
        figures["best_f1"] for figures in session.figures.values()
    ]
    assert len({json.dumps(figures) for figures in session.figures.values()}) > 1, "the student did not learn"


def test_training_does_not_depend_on_being_measured(config: DistillConfig, tmp_path: Path) -> None:
    for name, folder in (("measured", str(tmp_path / "dev")), ("not", None)):
        train(config, LocalSession(tmp_path / name), str(tmp_path / f"{name}.jsonl"), folder)
    states = [
        torch.load(next((tmp_path / name).glob("step-*")) / "optimizer.pt", weights_only=True)["trainee"]
        for name in ("measured", "not")
    ]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / f"{name}.jsonl").open()]
        for name in ("measured", "not")
    ]
    assert losses[0] == losses[1]


def test_two_workers_read_a_part_each_and_have_the_figures_of_one(
    config: DistillConfig, tmp_path: Path
) -> None:
    two = replace(config, workers=2)
    group.run(2, group.train_and_measure, two, tmp_path / "run", tmp_path)
    (last,) = (tmp_path / "run").glob("step-*")
    found = dev_files(tmp_path / "dev")
    assert sorted(found) == [4, 8, STEPS]
    assert found[STEPS] == measured_alone(str(last / MODEL), config)
    read = [int(np.load(tmp_path / f"read-{rank}.npy")) for rank in range(2)]
    assert read == [3 * 12, 3 * 12]  # of 24 questions, at each of three checkpoints


@pytest.mark.parametrize(("questions", "workers"), [(24, 1), (24, 5), (3, 4), (0, 2)])
def test_parts_of_all_workers_in_turn_are_the_questions(questions: int, workers: int) -> None:
    asked: list[Any] = list(range(questions))
    parts = [_part(asked, rank, workers) for rank in range(workers)]
    assert [each for part in parts for each in part] == asked
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("step", [8, STEPS])
def test_checkpoint_that_an_earlier_version_left_unmeasured_is_measured_on_resume(
    config: DistillConfig, tmp_path: Path, step: int
) -> None:
    class DyingSession(LocalSession):
        def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
            super().checkpoint(write, metrics)
            if metrics["step"] == step:
                raise KeyboardInterrupt

    dev = tmp_path / "dev"
    with pytest.raises(KeyboardInterrupt):
        train(config, DyingSession(tmp_path / "run"), dev_folder=str(dev))
    whole = dev_files(dev)
    (dev / f"step-{step:09d}.json").unlink()
    train(config, LocalSession(tmp_path / "run"), dev_folder=str(dev))
    found = dev_files(dev)
    assert sorted(found) == [4, 8, STEPS]
    assert found[step] == whole[step]


class WarnedSession(NotingSession):
    """Is told at a step, once, that its node will be taken away; keeps the order of what happens."""

    def __init__(self, folder: Path, step: int, *, dies: bool = False) -> None:
        super().__init__(folder)
        self.step, self.dies, self.events = step, dies, list[str]()
        self.asked = 0

    def is_warned(self) -> bool:
        self.asked += 2  # every second step
        return self.asked == self.step

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        super().checkpoint(write, metrics)
        score = " with its score" if SCORE in metrics else ""
        self.events.append(f"keep {metrics['step']}{score}")
        if self.dies and metrics["step"] == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [2, 4])
def test_student_of_a_node_that_goes_is_kept_before_one_is_measured(
    config: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Measuring may take longer than the node has; the checkpoint of step 4 is due in any case."""
    session = WarnedSession(tmp_path / "run", step)
    scored = DevScores.scored

    def noted(dev: DevScores, step: int) -> dict[str, float]:
        session.events.append(f"measure {step}")
        return scored(dev, step)

    monkeypatch.setattr(DevScores, "scored", noted)
    train(replace(config, log_steps=2), session, dev_folder=str(tmp_path / "dev"))
    later = [f"{what} {at}{more}" for at in (4, 8, 10) for what, more in MEASURED]
    assert session.events == [f"keep {step}", *later]


def test_checkpoint_kept_on_notice_is_measured_when_the_run_goes_on(
    config: DistillConfig, tmp_path: Path
) -> None:
    noticed = replace(config, log_steps=2)
    session = WarnedSession(tmp_path / "run", 2, dies=True)
    with pytest.raises(KeyboardInterrupt):
        train(noticed, session, dev_folder=str(tmp_path / "dev"))
    assert not (tmp_path / "dev").exists()
    alone = measured_alone(str(tmp_path / "run" / "step-000000002" / MODEL), config)
    train(noticed, LocalSession(tmp_path / "run"), dev_folder=str(tmp_path / "dev"))
    found = dev_files(tmp_path / "dev")
    assert sorted(found) == [2, 4, 8, STEPS]
    assert found[2] == alone


def test_without_questions_nothing_is_measured(config: DistillConfig, tmp_path: Path) -> None:
    session = NotingSession(tmp_path / "run")
    train(replace(config, dev=None), session, dev_folder=str(tmp_path / "dev"))
    assert not (tmp_path / "dev").exists()
    assert all(set(row) == {"step", "steps"} for row in session.metrics)


def test_student_that_trains_in_bf16_is_measured_in_fp32_on_a_cpu(
    config: DistillConfig, tmp_path: Path, has: Any
) -> None:
    has("bf16")
    train(replace(config, precision="bf16"), LocalSession(tmp_path / "run"), None, str(tmp_path / "dev"))
    (last,) = (tmp_path / "run").glob("step-*")
    assert pretrained.load_qa_model(str(last / MODEL)).dtype == torch.float32
    assert dev_files(tmp_path / "dev")[STEPS] == measured_alone(str(last / MODEL), config)
