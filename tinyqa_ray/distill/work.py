"""The work of a training stage: run the loop on Ray Train, publish the student."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import partial
from typing import Any

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.cluster import connected
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.said import heard, say_once
from tinyqa_ray.core.shared_folder import check_seen, probed
from tinyqa_ray.distill.checkpoints import mend_list, newest_checkpoint, whole_checkpoints
from tinyqa_ray.distill.checks import check, check_room
from tinyqa_ray.distill.dev_scores import SCORE
from tinyqa_ray.distill.failures import as_long_as_it_advances, causes, explained
from tinyqa_ray.distill.loop import MODEL, checkpoint_rows, train
from tinyqa_ray.distill.metrics_log import MetricsLog, last_loss, read_rows
from tinyqa_ray.distill.precision import NAMES, agreed_dtype
from tinyqa_ray.distill.report import CHECKPOINTS, DistillReport
from tinyqa_ray.distill.session import RaySession
from tinyqa_ray.distill.shown import DEV, METRICS, show, trackers
from tinyqa_ray.distill.watch import dev_figures, watched
from tinyqa_ray.models import hub, pretrained, weights

BEST = "best"
FAILURE = "failure.json"


def work(
    config: DistillConfig, stage: stage_folder.Stage, progress: stage_folder.Progress | None
) -> DistillReport:
    """Train the remaining steps, publish the student, and return the report."""
    config = hub.pinned(config, stage, "student", "soup_with", "teacher", "baseline", data=("dev",))
    windows = check(config)
    with connected():
        logs = trackers(config, stage)
        with (
            watched(stage.path(METRICS), stage.path(DEV), progress, logs),
            probed(stage.output) as probe,
        ):
            result = _fit(config, stage, probe)
        hardware = dict(result.return_value or {})
        for note in hardware.pop("notes", []):
            say_once(note)
        return _finished(config, stage, windows, hardware)


def train_loop_per_worker(options: dict[str, Any]) -> dict[str, Any] | None:
    """What each Ray Train worker runs; returns the device, the number of workers and the precision.

    It also returns what the workers warned of, as ``notes``.

    Ray retries every failure. One that would only repeat is written to a file for the driver, and the next
    attempt then ends at once.

    Raises:
        InputError: the worker's node does not see the stage's folder.
    """
    check_seen(options["probe"])
    config, failure = options["config"], options["failure_file"]
    if storage.kind(failure) == "file":
        return None
    session = RaySession(options["checkpoints"])
    with heard() as notes:
        try:
            train(config, session, options["metrics_file"], options["dev_folder"])
        except Exception as error:
            message = explained(error, config)
            if message is None:
                raise
            storage.write_json(failure, {"message": message, "notes": notes})
            if session.world_size > 1:
                raise  # the other workers may be waiting for this one
    return {
        "device": _device(session),
        "workers": session.world_size,
        "precision": NAMES[agreed_dtype(config, session)],
        "notes": [note for each in session.gather(notes) for note in each],
    }


def _fit(config: DistillConfig, stage: stage_folder.Stage, probe: str | None) -> Any:
    """Run the workers; they continue from an earlier attempt's checkpoint of the same config, if any.

    They are refused on nodes that do not see the ``probe`` in the stage's folder.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    if not os.environ.get("RAY_ADDRESS"):
        check_room(config, ray.cluster_resources())
    storage.delete_file(stage.path(FAILURE))
    fewest = config.min_workers or config.workers
    trainer = partial(
        TorchTrainer,
        train_loop_per_worker,
        train_loop_config={
            "config": stage_folder.for_workers(config, "data", "student", "soup_with", "teacher", "dev"),
            "metrics_file": stage.path(METRICS),
            "dev_folder": stage.path(DEV),
            "failure_file": stage.path(FAILURE),
            "checkpoints": _run_folder(stage),
            "probe": probe,
        },
        scaling_config=ScalingConfig(
            num_workers=config.workers if fewest == config.workers else (fewest, config.workers),
            use_gpu=config.use_gpu,
        ),
        run_config=RunConfig(
            name=stage.fingerprint,
            storage_path=stage.path(CHECKPOINTS),
            checkpoint_config=_checkpoint_config(config),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )

    def fit() -> Any:
        mend_list(_run_folder(stage))
        return trainer().fit()

    def newest() -> str | None:
        return newest_checkpoint(_run_folder(stage))

    def may_pass(error: Exception) -> bool:
        return isinstance(error, TrainingFailedError) and explained(error, config) is None

    try:
        result = as_long_as_it_advances(fit, newest, may_pass)
    except TrainingFailedError as error:
        message = explained(error, config)
        if message is not None:
            _failure(stage)
            raise InputError(message) from None
        for cause in causes(error):
            if isinstance(cause, StoreError):
                raise cause from None
        raise
    message = _failure(stage)
    if message is not None:
        raise InputError(message)
    return result


def _failure(stage: stage_folder.Stage) -> str | None:
    """What a worker wrote of a failure that would only repeat, once; what it warned of before is said."""
    file = stage.path(FAILURE)
    if storage.kind(file) != "file":
        return None
    found = storage.read_json(file)
    storage.delete_file(file)
    for note in found["notes"]:
        say_once(note)
    message: str = found["message"]
    return message


def _checkpoint_config(config: DistillConfig) -> Any:
    """Ray keeps the newest checkpoint beside those that are best on dev."""
    from ray.train import CheckpointConfig

    if config.dev is None:
        return CheckpointConfig(num_to_keep=1)
    return CheckpointConfig(
        num_to_keep=config.keep_best,
        checkpoint_score_attribute=SCORE,
        checkpoint_score_order="max",
    )


def _run_folder(stage: stage_folder.Stage) -> str:
    """Where Ray keeps the run; its name is the config's fingerprint, since Ray resumes a run by name."""
    return stage.path(CHECKPOINTS, stage.fingerprint)


def _finished(
    config: DistillConfig, stage: stage_folder.Stage, windows: int, hardware: dict[str, Any]
) -> DistillReport:
    """Publish the student with its page and card, and return the report."""
    dev = dev_figures(stage.path(DEV))
    kept = {step: folder for folder, step in whole_checkpoints(_run_folder(stage)).items()}
    rows = _rows(stage, kept)
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
        loss=last_loss(rows),
        parameters=weights.count_parameters(stage.path(MODEL)),
        model_bytes=pretrained.model_bytes(stage.path(MODEL)),
        published_step=step,
        dev_exact=figures.get("exact"),
        dev_f1=figures.get("f1"),
        dev_best_f1=figures.get("best_f1"),
    )
    show(config, stage, report, hardware)
    return report


def _rows(stage: stage_folder.Stage, kept: Mapping[int, str]) -> list[dict[str, Any]]:
    """The rows of the run; those of its last checkpoint, if they could not all be written."""
    rows = read_rows(stage.path(METRICS))
    if kept and (not rows or rows[-1]["step"] < max(kept)):
        rows = checkpoint_rows(kept[max(kept)])
        MetricsLog(stage.path(METRICS)).resume(rows)
    return rows


def copy_model(checkpoint: str, target: str) -> None:
    """Copy the student of a checkpoint into a model folder; the optimiser's state is not fetched."""
    for file in storage.list_files(storage.join(checkpoint, MODEL)):
        storage.write_atomic(storage.join(target, file.rsplit("/", 1)[-1]), storage.read_bytes(file))


def _device(session: RaySession) -> str:
    """Name of the device that a worker computes on, for people to read."""
    import torch

    if session.device.type == "cuda":
        return torch.cuda.get_device_name(session.device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
