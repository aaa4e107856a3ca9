"""What the driver sees of a run in other processes: its rows and dev figures, as they are written."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.distill.metrics_log import RowReader
from tinyqa_ray.distill.trackers import Tracker, dev_values, training_values

Row = Mapping[str, float | None]

_log = logging.getLogger(__name__)
_POLL_S, _REMOTE_POLL_S = 0.5, 5.0


@contextmanager
def watched(
    metrics_file: str, dev_folder: str, progress: stage_folder.Progress | None, logs: Sequence[Tracker]
) -> Iterator[None]:
    """Pass on every row and every dev figure, once each and in order, while the block runs.

    An error of a tracker or of ``progress`` is logged once; the curve has a gap, and the run goes on.
    """
    done = threading.Event()
    monitor = RunMonitor(metrics_file, dev_folder, progress, logs)
    wait_s = _POLL_S if storage.is_local(metrics_file) else _REMOTE_POLL_S

    def watch() -> None:
        while not done.wait(wait_s):
            # A store that does not answer is asked again.
            with monitor.survived(), suppress(OSError, InputError, StoreError):
                monitor.poll()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        done.set()
        thread.join()
        with monitor.survived():
            monitor.poll()
        for log in logs:
            with monitor.survived():
                log.close(failed=failed)


def dev_figures(dev_folder: str) -> list[dict[str, Any]]:
    """Figures of the checkpoints that were measured, by step."""
    return [storage.read_json(file) for file in _dev_files(dev_folder)]


def _dev_files(dev_folder: str) -> list[str]:
    """Files of figures, by step."""
    prefix = storage.join(dev_folder, "step-")
    return [file for file in storage.list_files(dev_folder, ".json") if file.startswith(prefix)]


class RunMonitor:
    """Reads what is new in the files of a run, and passes it on."""

    def __init__(
        self,
        metrics_file: str,
        dev_folder: str,
        progress: stage_folder.Progress | None,
        logs: Sequence[Tracker],
    ) -> None:
        self._rows, self._dev_folder = RowReader(metrics_file), dev_folder
        self._progress, self._logs = progress, logs
        self._step, self._dev_file = -1, ""
        self._row: dict[str, Any] = {}
        self._dev: Row = {}
        self._said: set[str] = set()

    def poll(self) -> None:
        """Read what is new since the last call, and pass it on."""
        for file in _dev_files(self._dev_folder):
            if file > self._dev_file:
                with self.survived():
                    dev = storage.read_json(file)
                    self._dev_file, self._dev = file, dev
                    self._pass(dev["step"], dev_values(dev))
        for row in self._rows.new():
            self._row = row
            # After a retry the rows since the last checkpoint are written again.
            if row["step"] > self._step:
                self._step = row["step"]
                self._pass(row["step"], training_values(row))
        if self._progress is not None and self._row:
            with self.survived():
                self._progress(self._row["step"], self._row["steps"], note=_note(self._row, self._dev))

    def _pass(self, step: int, values: Mapping[str, float]) -> None:
        for log in self._logs:
            with self.survived():
                log.log(step, values)

    @contextmanager
    def survived(self) -> Iterator[None]:
        """Log an error and go on; the same error is logged only once."""
        try:
            yield
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if told not in self._said:
                self._said.add(told)
                _log.warning(
                    "a curve of this run is incomplete: %s",
                    told,
                    exc_info=None if isinstance(error, (InputError, StoreError)) else error,
                )


def _note(row: Row, dev: Row) -> str:
    loss = "–" if row["loss"] is None else f"{row['loss']:.3f}"  # fp16 skipped that step
    note = f"loss {loss}, {row['samples_per_s']:.1f} windows/s"
    if dev:
        note += f", dev EM {dev['exact']:.1f} F1 {dev['f1']:.1f} (best threshold {dev['best_f1']:.1f})"
    return note
