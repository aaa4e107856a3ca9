"""The work of a training stage: run the loop on Ray Train, measure checkpoints, publish the student."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyqa_ray.configs import DistillConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.cluster import connected
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.checkpoints import (
    as_checkpoint,
    local_checkpoint,
    mend_list,
    sealed,
    whole_checkpoints,
)
from tinyqa_ray.distill.checks import check, check_room
from tinyqa_ray.distill.failures import explained
from tinyqa_ray.distill.loop import MODEL, train
from tinyqa_ray.distill.metrics_log import read_rows
from tinyqa_ray.distill.report import CHECKPOINTS, DistillReport
from tinyqa_ray.distill.session import RaySession
from tinyqa_ray.distill.shown import DEV, METRICS, show, trackers
from tinyqa_ray.distill.watch import dev_figures, watched
from tinyqa_ray.models import pretrained, weights
from tinyqa_ray.teacher_logits.window_dataset import window_sizes

BEST = "best"
FAILURE = "failure.json"


def work(
    config: DistillConfig, stage: stage_folder.Stage, progress: stage_folder.Progress | None
) -> DistillReport:
    """Train the remaining steps, publish the student, and return the report."""
    windows = check(config)
    with connected():
        logs = trackers(config, stage)
        with watched(stage.path(METRICS), stage.path(DEV), progress, logs):
            result = _fit(config, stage)
            _measure_rest(config, stage)
        return _finished(config, stage, windows, result)


def train_loop_per_worker(options: dict[str, Any]) -> dict[str, Any] | None:
    """What each Ray Train worker runs; returns the device and the number of workers.

    Ray retries every failure. One that would only repeat is written to a file for the driver, and the next
    attempt then ends at once.
    """
    config, failure = options["config"], options["failure_file"]
    if storage.kind(failure) == "file":
        return None
    session = RaySession(options["checkpoints"])
    try:
        train(config, session, options["metrics_file"])
    except Exception as error:
        message = explained(error, config)
        if message is None:
            raise
        storage.write_json(failure, {"message": message})
        if session.world_size > 1:
            raise  # the other workers may be waiting for this one
    return {"device": _device(session), "workers": session.world_size}


def measure_checkpoint(
    checkpoint: Any, *, dev: str, folder: str, window: dict[str, int], device: str
) -> dict[str, float]:
    """Measure the student of a checkpoint on dev and keep the figures; a task that runs during training."""
    from tinyqa_ray.evaluate.work import measured

    with checkpoint.as_directory() as local:
        step = sealed(Path(local))["step"]
        file = storage.join(folder, f"step-{step:09d}.json")
        if storage.kind(file) != "file":
            figures = measured(str(Path(local) / MODEL), dev, WindowConfig(**window), device=device)
            storage.write_json(file, {"step": step, **figures})
    return {"dev_best_f1": storage.read_json(file)["best_f1"]}


def _fit(config: DistillConfig, stage: stage_folder.Stage) -> Any:
    """Run the workers; they continue from an earlier attempt's checkpoint of the same config, if any."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    if not os.environ.get("RAY_ADDRESS"):
        check_room(config, ray.cluster_resources())
    mend_list(_run_folder(stage))
    storage.delete_file(stage.path(FAILURE))
    fewest = config.min_workers or config.workers
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={
            "config": stage_folder.for_workers(config, "data", "student", "soup_with", "teacher"),
            "metrics_file": stage.path(METRICS),
            "failure_file": stage.path(FAILURE),
            "checkpoints": _run_folder(stage),
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers if fewest == config.workers else (fewest, config.workers),
            use_gpu=config.use_gpu,
        ),
        run_config=RunConfig(
            name=stage.fingerprint,
            storage_path=stage.path(CHECKPOINTS),
            checkpoint_config=_checkpoint_config(config),
            failure_config=FailureConfig(max_failures=3),
        ),
        validation_config=_validation_config(config, stage, ray.cluster_resources()),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        message = explained(error, config)
        if message is not None:
            raise InputError(message) from None
        raise
    if storage.kind(stage.path(FAILURE)) == "file":
        message = storage.read_json(stage.path(FAILURE))["message"]
        storage.delete_file(stage.path(FAILURE))
        raise InputError(message)
    return result


def _checkpoint_config(config: DistillConfig) -> Any:
    """Ray keeps the newest checkpoint beside those that are best on dev."""
    from ray.train import CheckpointConfig

    if config.dev is None:
        return CheckpointConfig(num_to_keep=1)
    return CheckpointConfig(
        num_to_keep=config.keep_best,
        checkpoint_score_attribute="dev_best_f1",
        checkpoint_score_order="max",
    )


def _run_folder(stage: stage_folder.Stage) -> str:
    """Where Ray keeps the run; its name is the config's fingerprint, since Ray resumes a run by name."""
    return stage.path(CHECKPOINTS, stage.fingerprint)


def _validation_config(config: DistillConfig, stage: stage_folder.Stage, resources: dict[str, float]) -> Any:
    """The task that measures checkpoints; if workers hold every CPU, it reserves none."""
    from ray.train import ValidationConfig, ValidationTaskConfig

    if config.dev is None:
        return None
    cpus = 1 if resources.get("CPU", 0) > config.workers else 0
    return ValidationConfig(
        measure_checkpoint,
        ValidationTaskConfig(fn_kwargs=_measured_how(config, stage)),
        ray_remote_kwargs={"num_cpus": cpus, "num_gpus": config.num_gpus_per_evaluation},
    )


def _measured_how(config: DistillConfig, stage: stage_folder.Stage) -> dict[str, Any]:
    """The options of ``measure_checkpoint``."""
    return {
        "dev": stage_folder.for_workers(config, "dev").dev,
        "folder": stage.path(DEV),
        "window": asdict(window_sizes(config.data)),
        "device": "cuda" if config.num_gpus_per_evaluation else "cpu",
    }


def _measure_rest(config: DistillConfig, stage: stage_folder.Stage) -> None:
    """Measure the checkpoints that Ray did not list before a kill, and so did not measure."""
    import ray

    if config.dev is None:
        return
    known = {row["step"] for row in dev_figures(stage.path(DEV))}
    task = ray.remote(measure_checkpoint).options(num_cpus=1, num_gpus=config.num_gpus_per_evaluation)
    for folder, step in whole_checkpoints(_run_folder(stage)).items():
        if step not in known:
            ray.get(task.remote(as_checkpoint(folder), **_measured_how(config, stage)))


def _finished(config: DistillConfig, stage: stage_folder.Stage, windows: int, result: Any) -> DistillReport:
    """Publish the student with its page and card, and return the report."""
    rows, dev = read_rows(stage.path(METRICS)), dev_figures(stage.path(DEV))
    kept = {step: folder for folder, step in whole_checkpoints(_run_folder(stage)).items()}
    # Of equal ones the later counts as better, as it does for Ray, which has deleted the others.
    ranked = sorted(
        (row for row in dev if row["step"] in kept), key=lambda row: (-row["best_f1"], -row["step"])
    )
    for row in ranked[: config.keep_best]:
        copy_model(kept[row["step"]], stage.path(BEST, f"step-{row['step']:09d}"))
    step = int(rows[-1]["step"]) if config.publish == "last" else int(ranked[0]["step"])
    copy_model(kept[step], stage.path(MODEL))
    figures: dict[str, Any] = next((row for row in dev if row["step"] == step), {})
    report = DistillReport(
        windows=windows,
        steps=int(rows[-1]["steps"]),
        loss=rows[-1]["loss"],
        parameters=weights.count_parameters(stage.path(MODEL)),
        model_bytes=pretrained.model_bytes(stage.path(MODEL)),
        published_step=step,
        dev_exact=figures.get("exact"),
        dev_f1=figures.get("f1"),
        dev_best_f1=figures.get("best_f1"),
    )
    show(config, stage, report, result.return_value or {})
    return report


def copy_model(checkpoint: str, target: str) -> None:
    """Copy the student of a checkpoint into a model folder."""
    with local_checkpoint(checkpoint) as folder:
        for file in sorted((folder / MODEL).iterdir()):
            storage.write_atomic(storage.join(target, file.name), file.read_bytes())


def _device(session: RaySession) -> str:
    """Name of the device that a worker computes on, for people to read."""
    import torch

    if session.device.type == "cuda":
        return torch.cuda.get_device_name(session.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
