from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering

from tinyqa_ray import storage
from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill import DistillReport, distill, teacher_logits
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.teacher_logits import window_files
from tinyqa_ray.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = 240
CHECKPOINT_STEPS = 50
# Softmax cancels what these add to every token: their gradient is rounding alone, which AdamW scales up.
UNSEEN = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student without dropout, so that any number of workers trains it alike."""
    folder = tiny.save_qa_model(tmp_path_factory.mktemp("student") / "m", layers=1, seed=1)
    file = Path(folder) / "config.json"
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    file.write_text(json.dumps({**json.loads(file.read_text()), **still}))
    return str(folder)


@pytest.fixture(scope="module")
def config(
    ray_cluster: None, student: str, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory
) -> DistillConfig:
    output = str(tmp_path_factory.mktemp("windows") / "out")
    window = WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20)
    teacher_logits(TeacherLogitsConfig(data=tiny_squad, tokenizer=student, window=window), output)
    windows = len(WindowData(window_files(output), 0))
    return DistillConfig(
        data=output,
        student=student,
        objective="labels",
        batch_size=4,
        epochs=STEPS * 4 / windows,
        checkpoint_steps=CHECKPOINT_STEPS,
        log_steps=10,
        threads=1,
    )


@pytest.fixture(scope="module")
def calm(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    output = tmp_path_factory.mktemp("calm") / "out"
    distill(config, str(output))
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForQuestionAnswering.from_pretrained(output / "model")
    return dict(model.state_dict())


def rows(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in ("step", "loss", "grad_norm", "learning_rate")} for line in lines]


def test_stage_publishes_a_student_once(config: DistillConfig, calm: Path, student: str) -> None:
    start = AutoModelForQuestionAnswering.from_pretrained(student).state_dict()
    made = weights(calm)
    assert any(not torch.equal(made[name], tensor) for name, tensor in start.items())
    logged = rows(calm)
    assert [row["step"] for row in logged] == list(range(10, STEPS + 1, 10))
    assert sum(row["loss"] for row in logged[-5:]) < sum(row["loss"] for row in logged[:5])
    assert storage.kind(str(calm / "checkpoints")) == "absent"

    times = {path: path.stat().st_mtime_ns for path in calm.rglob("*")}
    report = distill(config, str(calm))
    assert isinstance(report, DistillReport)
    assert (report.steps, report.loss) == (STEPS, logged[-1]["loss"])
    assert report.parameters == sum(p.numel() for n, p in made.items() if "position_ids" not in n)
    assert {path: path.stat().st_mtime_ns for path in calm.rglob("*")} == times
    with pytest.raises(InputError, match="other settings"):
        distill(replace(config, learning_rate=1.0), str(calm))


def test_two_workers_train_what_one_does(config: DistillConfig, calm: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    distill(replace(config, workers=2, checkpoint_steps=STEPS), str(output))
    made = weights(output)
    for name, tensor in weights(calm).items():
        if not name.endswith(UNSEEN):
            torch.testing.assert_close(made[name], tensor, rtol=0, atol=1e-4)


def ours(folder: Path) -> bool:
    """Whether a process of /proc descends from this one: another run's workers are left alone."""
    while folder.name not in ("0", "1"):
        if int(folder.name) == os.getpid():
            return True
        folder = folder.parent / (folder / "stat").read_text().rpartition(")")[2].split()[1]
    return False


def train_workers() -> list[int]:
    """Process ids of Ray Train's workers on this machine."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                folder.name.isdigit()
                and b"RayTrainWorker" in (folder / "cmdline").read_bytes()
                and ours(folder)
            ):
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker in /proc")
def test_run_whose_worker_is_killed_ends_with_the_same_weights(
    config: DistillConfig, calm: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not killed:
            time.sleep(0.005)
            with contextlib.suppress(OSError, ValueError, IndexError):
                step = rows(output)[-1]["step"]
                # Beyond two checkpoints, and between one and the next.
                if step >= 2 * CHECKPOINT_STEPS + 10 and (workers := train_workers()):
                    os.kill(workers[0], signal.SIGKILL)
                    killed.append(int(step))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    distill(config, str(output))
    thread.join()
    assert killed, "the run ended before its worker was killed"
    assert killed[0] < STEPS
    expected, made = weights(calm), weights(output)
    assert expected.keys() == made.keys()
    assert [name for name in made if not torch.equal(made[name], expected[name])] == []
    assert rows(output) == rows(calm)
