"""The distillation stage: windows and a student in, a taught student out, on Ray Train."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyqa_ray import models, runs, storage
from tinyqa_ray.cluster import connected
from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import Order, WindowData
from tinyqa_ray.distill.loop import MODEL, train
from tinyqa_ray.distill.objectives import check_heads
from tinyqa_ray.distill.session import RaySession
from tinyqa_ray.distill.students import layer_pairs
from tinyqa_ray.distill.teacher_logits import window_files
from tinyqa_ray.errors import InputError

Progress = Callable[[int, int], None]
"""Called with optimiser steps done and in all."""

METRICS = "metrics.jsonl"
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillReport:
    """What a training stage did."""

    windows: int
    steps: int
    loss: float
    """Loss of the last step logged."""
    parameters: int
    """Parameters of the student."""
    model_bytes: int
    """Size of the student's weights on disk, in bytes."""


def distill(config: DistillConfig, output: str, progress: Progress | None = None) -> DistillReport:
    """Train a student on Ray Train and publish it as the model folder ``output/model``.

    Killed and run again, it continues from its last checkpoint.

    Raises:
        InputError: windows or models that cannot be read or do not fit together, or a folder of another
            run.
    """
    with runs.stage(output, config, inputs=("data", "student", "teacher")) as stage:
        if stage.finished:
            return stage.report(DistillReport)
        windows = check(config)
        with connected(), _watched(stage.path(METRICS), progress):
            result = _fit(config, stage)
        _publish_model(result.checkpoint, stage.path(MODEL))
        rows = _metrics(stage.path(METRICS))
        network = models.load_qa_model(stage.path(MODEL))
        report = DistillReport(
            windows=windows,
            steps=int(rows[-1]["steps"]),
            loss=rows[-1]["loss"],
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            model_bytes=models.model_bytes(stage.path(MODEL)),
        )
        stage.publish(report)
        # The optimiser's state is of no more use.
        storage.delete_folder(stage.path("checkpoints"))
        return report


def train_loop_per_worker(options: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    train(options["config"], RaySession(), options["metrics_file"])


def check(config: DistillConfig) -> int:
    """Refuse, before anything starts, what cannot be trained; return the number of windows.

    Raises:
        InputError: unfinished windows, fewer than a batch, windows without a teacher's logits, or a
            teacher whose layers or heads do not fit the student's.
    """
    tokenizer = models.load_tokenizer(config.student)
    data = WindowData(window_files(config.data), tokenizer.pad_token_id or 0)
    if len(data) < config.batch_size:
        raise InputError(
            f"{config.data}: holds {len(data)} windows, fewer than batch_size {config.batch_size}; "
            "lower --batch-size or give more data"
        )
    if config.objective == "prediction" and not data.has_logits:
        raise InputError(
            f"{config.data}: its windows carry no teacher's logits; run 'teacher-logits' with --model"
        )
    student = models.load_config(config.student)
    layers = range(int(student.num_hidden_layers))
    chosen = tuple(layers) if config.student_layers is None else config.student_layers
    if not chosen or not set(chosen) <= set(layers) or len(set(chosen)) < len(chosen):
        raise InputError(
            f"student_layers are {chosen}; {config.student} has layers 0 to {layers[-1]}; give each once"
        )
    models.check_window(config.student, student, int(data.lengths.max()))
    if config.objective == "intermediate":
        assert config.teacher is not None
        teacher = models.load_config(config.teacher)
        check_heads(student, teacher)
        layer_pairs(int(teacher.num_hidden_layers), len(chosen))
    if config.teacher is not None:
        models.load_qa_model(config.teacher, new_head=True)
    models.load_qa_model(config.student, new_head=True)
    assert Order(data.lengths, config.batch_size, config.epochs, config.seed).steps > 0
    return len(data)


def _fit(config: DistillConfig, stage: runs.Stage) -> Any:
    """Run the workers; an earlier attempt's checkpoint of the same config is continued."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": runs.for_workers(config, "data", "student", "teacher"),
            "metrics_file": stage.path(METRICS),
        },
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=config.use_gpu),
        run_config=RunConfig(
            # The name carries the config: Ray resumes whatever has the same name.
            name=runs.fingerprint(config),
            storage_path=stage.path("checkpoints"),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            failure_config=FailureConfig(max_failures=3),
        ),
    )
    try:
        return trainer.fit()
    except TrainingFailedError as error:
        for cause in _causes(error):
            if isinstance(cause, InputError):
                raise InputError(str(cause)) from None
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error of Ray Train and the workers' errors within it."""
    yield error
    for inner in (getattr(error, "worker_failures", None) or {}).values():
        yield from _causes(inner)
    for inner in (error.__cause__, getattr(error, "cause", None)):
        if isinstance(inner, BaseException):
            yield from _causes(inner)


def _publish_model(checkpoint: Any, target: str) -> None:
    with checkpoint.as_directory() as folder:
        for file in sorted((Path(folder) / MODEL).iterdir()):
            storage.write_atomic(storage.join(target, file.name), file.read_bytes())


def _metrics(file: str) -> list[dict[str, float]]:
    import json

    return [json.loads(line) for line in storage.read_bytes(file).splitlines()]


@contextmanager
def _watched(metrics_file: str, progress: Progress | None) -> Iterator[None]:
    """Report progress from the newest row of the metrics, which a worker writes elsewhere."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            if storage.kind(metrics_file) == "file":
                row = _metrics(metrics_file)[-1]
                progress(int(row["step"]), int(row["steps"]))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
