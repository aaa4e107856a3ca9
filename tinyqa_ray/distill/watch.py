"""What the driver sees of a run that goes on elsewhere: its rows and dev figures, as they are written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from tinyqa_ray import storage
from tinyqa_ray.distill.curves import read_rows
from tinyqa_ray.distill.trackers import Tracker, dev_values, training_values
from tinyqa_ray.errors import InputError

Progress = Callable[..., None]
"""Called with optimiser steps done and in all, and ``note``: how the run stands, in a few words."""
Row = Mapping[str, float | None]

_POLL_S, _REMOTE_POLL_S = 0.5, 5.0


@contextmanager
def watched(
    metrics_file: str, dev_folder: str, progress: Progress | None, logs: Sequence[Tracker]
) -> Iterator[None]:
    """Pass on every row and every dev figure, once each and in order, while the block runs."""
    done = threading.Event()
    eye = _Eye(metrics_file, dev_folder, progress, logs)
    wait_s = _POLL_S if storage.is_local(metrics_file) else _REMOTE_POLL_S

    def watch() -> None:
        while not done.wait(wait_s):
            # A store that does not answer is asked again.
            with suppress(OSError, InputError):
                eye.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    failed = True
    try:
        yield
        failed = False
    finally:
        done.set()
        thread.join()
        try:
            eye.look()
        finally:
            for log in logs:
                log.close(failed=failed)


def dev_figures(dev_folder: str) -> list[dict[str, Any]]:
    """Figures of the checkpoints that were measured, by step."""
    prefix = storage.join(dev_folder, "step-")
    files = [file for file in storage.list_files(dev_folder, ".json") if file.startswith(prefix)]
    return [storage.read_json(file) for file in files]


class _Eye:
    def __init__(
        self, metrics_file: str, dev_folder: str, progress: Progress | None, logs: Sequence[Tracker]
    ) -> None:
        self._metrics_file, self._dev_folder = metrics_file, dev_folder
        self._progress, self._logs = progress, logs
        self._row_step = self._dev_step = -1
        self._dev: Row = {}

    def look(self) -> None:
        for dev in dev_figures(self._dev_folder):
            if dev["step"] > self._dev_step:
                self._dev_step, self._dev = dev["step"], dev
                self._pass(dev["step"], dev_values(dev))
        rows = read_rows(self._metrics_file)
        for row in rows:
            # After a retry the rows since the last checkpoint are written again.
            if row["step"] > self._row_step:
                self._row_step = row["step"]
                self._pass(row["step"], training_values(row))
        if self._progress is not None and rows:
            self._progress(int(rows[-1]["step"]), int(rows[-1]["steps"]), note=_note(rows[-1], self._dev))

    def _pass(self, step: int, values: Mapping[str, float]) -> None:
        for log in self._logs:
            log.log(step, values)


def _note(row: Row, dev: Row) -> str:
    note = f"loss {row['loss']:.3f}, {row['samples_per_s']:.1f} windows/s"
    if dev:
        note += f", dev EM {dev['exact']:.1f} F1 {dev['f1']:.1f} (best threshold {dev['best_f1']:.1f})"
    return note
