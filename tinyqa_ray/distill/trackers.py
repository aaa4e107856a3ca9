"""Where the curves of a training run go: TensorBoard's event files, and MLflow.

A tracker lives in the driver and is used by one thread. It may be given rows again, and still shows each
point of a resumed run once. If it cannot be reached during a run, its curves have gaps, but training goes on.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.pretrained import first_line

EXPERIMENT = "tinyqa-ray"
"""Name of the experiment in MLflow."""
COPY_S = 60.0
"""Seconds between copies of event files to a URL."""
SEND_S = 10.0
"""Seconds between requests to MLflow."""
_RETRY_S = 60.0
_POINTS = 1000  # MLflow's limits of one request
_PARAMS = 100
_TAGS = {
    "loss": "loss/total",
    "grad_norm": "optimiser/grad_norm",
    "learning_rate": "optimiser/learning_rate",
    "loss_scale": "optimiser/loss_scale",
    "samples_per_s": "speed/samples_per_s",
    "tokens_per_s": "speed/tokens_per_s",
}
_UNPLOTTED = ("step", "steps", "questions", "parameters")
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the points of a run's curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of each name (see `training_values`, `dev_values`)."""

    def close(self, *, failed: bool = False) -> None:
        """Hand over what is still held back; call it once, also after a failure."""


def training_values(row: Mapping[str, float | None]) -> dict[str, float]:
    """Names and finite values of a row of ``metrics.jsonl``; a key without another meaning is a loss term."""
    return _finite({_TAGS.get(key, f"loss/{key}"): row[key] for key in row if key not in _UNPLOTTED})


def dev_values(row: Mapping[str, float | None]) -> dict[str, float]:
    """Names and finite values of a checkpoint's figures on dev."""
    return _finite({f"dev/{key}": row[key] for key in row if key not in _UNPLOTTED})


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    # fp16 skips steps whose gradients overflow: an infinite norm is no point of a curve.
    return {name: float(value) for name, value in values.items() if value is not None and isfinite(value)}


class TensorBoard:
    """Event files in one folder, which tensorboardX writes: TensorBoard itself need not be installed.

    Files of earlier attempts are deleted, so log every row again after opening.
    """

    def __init__(self, folder: str) -> None:
        """Start a file in ``folder``, local or a URL; to a URL it is copied about every ``COPY_S``."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        for path in storage.list_files(folder):
            if path.rsplit("/", 1)[-1].startswith("events.out.tfevents."):
                filesystem, inner = storage.resolve(path)
                filesystem.delete_file(inner)
        self._url = None if storage.is_local(folder) else folder
        self._scratch = tempfile.TemporaryDirectory() if self._url else None
        self._folder = self._scratch.name if self._scratch else storage.resolve(folder)[1]
        Path(self._folder).mkdir(parents=True, exist_ok=True)
        self._event = Event
        self._writer = EventsWriter(str(Path(self._folder) / "events"))
        self._copied = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        if not values:
            return
        event = self._event(wall_time=time.time(), step=step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._writer.write_event(event)
        self._writer.flush()
        if self._url and time.monotonic() - self._copied >= COPY_S:
            self._copy(self._url)

    def close(self, *, failed: bool = False) -> None:
        """Finish the file; event files do not say how a run ended."""
        self._writer.close()
        if self._url and self._scratch:
            self._copy(self._url)
            self._scratch.cleanup()

    def _copy(self, url: str) -> None:
        self._copied = time.monotonic()
        try:
            for file in Path(self._folder).iterdir():
                storage.write_atomic(storage.join(url, file.name), file.read_bytes())
        except (OSError, InputError) as error:
            _log.warning("%s: TensorBoard's files could not be copied (%s)", url, first_line(error))


class MLflow:
    """A run of MLflow's experiment "tinyqa-ray", fed in batches."""

    run_id: str
    """Id to keep, and to give again when the training is resumed."""

    def __init__(self, uri: str, name: str, params: Mapping[str, object], run_id: str | None = None) -> None:
        """Open a run.

        Args:
            uri: MLflow's tracking URI.
            name: of the run.
            params: configuration; nested mappings are flattened, and values become text.
            run_id: run to continue; points that it holds are not sent again. A new run is made when it is
                None, or when that run was deleted.

        Raises:
            InputError: the extra is not installed, or the store cannot be used.
        """
        # By default MLflow sends telemetry, and retries a dead server for four minutes.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        try:
            import mlflow
            from mlflow import entities
        except ImportError:
            raise InputError(
                "mlflow is set, but MLflow is not installed; pip install 'tinyqa-ray[mlflow]', or leave "
                "--mlflow out"
            ) from None
        self._entities: Any = entities
        self._errors = (mlflow.MlflowException, OSError)
        self._uri = uri
        self._held: list[Any] = []
        self._send_at = time.monotonic() + SEND_S
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri)
            run = self._open(name, run_id)
            self.run_id = run.info.run_id
            self._known: dict[str, set[int]] = {
                key: {point.step for point in self._client.get_metric_history(self.run_id, key)}
                for key in run.data.metrics
            }
            self._log_params(_flat(params), run.data.params)
        except self._errors as error:
            raise InputError(
                f"mlflow {uri!r}: {first_line(error)}; give the address of a running server "
                "(http://host:5000), or 'pip install mlflow' for a database on this machine"
            ) from None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve that lacks one at this step."""
        now = int(time.time() * 1000)
        for key, value in values.items():
            steps = self._known.setdefault(key, set())
            if step not in steps:
                steps.add(step)
                self._held.append(self._entities.Metric(key, value, now, step))
        if time.monotonic() >= self._send_at:
            self._send()

    def close(self, *, failed: bool = False) -> None:
        """Send what is held back, and say how the run ended."""
        if self._send():
            try:
                self._client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
            except self._errors as error:
                self._warn(error)

    def _open(self, name: str, run_id: str | None) -> Any:
        if run_id is not None:
            try:
                run = self._client.get_run(run_id)
            except self._errors as error:
                if getattr(error, "error_code", None) != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if run.info.lifecycle_stage == "active":
                    self._client.update_run(run_id, status="RUNNING")
                    return run
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        return self._client.create_run(number, run_name=name)

    def _log_params(self, params: Mapping[str, str], known: Mapping[str, str]) -> None:
        # MLflow refuses to change a param, and a resumed run may have another number of workers.
        new = [self._entities.Param(key, text) for key, text in params.items() if key not in known]
        for start in range(0, len(new), _PARAMS):
            self._client.log_batch(self.run_id, params=new[start : start + _PARAMS], synchronous=True)

    def _send(self) -> bool:
        """Send the points held, and return whether all were sent; the others are kept for the next time."""
        self._send_at = time.monotonic() + SEND_S
        try:
            while self._held:
                self._client.log_batch(self.run_id, metrics=self._held[:_POINTS], synchronous=True)
                del self._held[:_POINTS]
        except self._errors as error:
            self._send_at = time.monotonic() + _RETRY_S
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        _log.warning("mlflow %r: %s; %d points are not sent", self._uri, first_line(error), len(self._held))


def _flat(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """``{"window": {"doc_stride": 128}}`` as ``{"window.doc_stride": "128"}``; lists joined by commas."""
    found: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            found[prefix + key] = ", ".join(map(str, value))
        else:
            found[prefix + key] = str(value)
    return found
