"""The rows of a run's metrics: written by the worker of rank 0, read by the driver."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import reprlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.said import say_once

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 60.0
"""Longest pause between two writes of the rows, however long a write takes."""


class MetricsLog:
    """Rows of a run's metrics; checkpoints hold them too, so a resumed curve has no gap or repeat."""

    def __init__(self, file: str | None) -> None:
        """Keep the rows in ``file``, as JSON lines; None keeps them in memory only."""
        self.file = file
        self.rows: list[dict[str, float | None]] = []
        self._written = self._cost = 0.0
        self._failing = False
        self._begin()

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._samples = self._tokens = 0

    def count(self, samples: int, tokens: int) -> None:
        """Count windows and real tokens of a step towards the speed of the next row."""
        self._samples += samples
        self._tokens += tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the speed."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def add(
        self,
        step: int,
        steps: int,
        terms: dict[str, float],
        grad_norm: float,
        learning_rate: float,
        loss_scale: float | None,
    ) -> None:
        """Append a row, and rewrite the file now and then; the driver reads its progress there."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        row = {"step": step, "steps": steps, "loss": sum(terms.values()), **terms, "grad_norm": grad_norm}
        speed = {"samples_per_s": self._samples / seconds, "tokens_per_s": self._tokens / seconds}
        scale = {} if loss_scale is None else {"loss_scale": loss_scale}
        self.rows.append(_finite({**row, "learning_rate": learning_rate, **speed, **scale}))
        self._begin()
        # The longer a write takes, the rarer it is, up to a limit: a single write may be slow by chance.
        pause_s = min(20 * self._cost, _LONGEST_PAUSE_S)
        if step == steps or time.monotonic() - self._written > pause_s:
            self._write(is_last=step == steps)

    def resume(self, rows: list[dict[str, float | None]]) -> None:
        """Continue after the rows of a checkpoint; rows of later steps are dropped from the file."""
        self.rows = [_finite(row) for row in rows]  # those of an earlier version may hold others
        self._write()

    def _write(self, *, is_last: bool = False) -> None:
        """Write all rows; if that fails, say so once and go on: the next write holds them as well.

        Only the last write waits for a busy store; the others would hold up the training.
        """
        if self.file is None:
            return
        began = time.monotonic()
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in self.rows)
        try:
            with contextlib.nullcontext() if is_last else faults.impatient():
                storage.write_atomic(self.file, lines.encode())
            self._failing = False
        except (InputError, StoreError, OSError) as error:
            if not self._failing:
                _log.warning(
                    "the rows of this run could not be written (%s); they are kept, and written with the "
                    "next ones",
                    error,
                )
            self._failing = True
        self._written = time.monotonic()
        self._cost = self._written - began


def _finite(row: Mapping[str, float | None]) -> dict[str, float | None]:
    """A row as JSON can hold it: None where a loss or norm overflowed in fp16, whose step was skipped."""
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in row.items()
    }


def last_loss(rows: Sequence[Mapping[str, float | None]]) -> float | None:
    """Loss of the last row that has a finite one; None where none has."""
    return next((loss for row in reversed(rows) if (loss := _finite(row)["loss"]) is not None), None)


def read_rows(file: str) -> list[dict[str, Any]]:
    """Rows that a run has written so far."""
    return RowReader(file).new()


class RowReader:
    """Reads a file of rows as it grows, each row once.

    An unfinished last line is left for the next call. A finished line that is no row is left out, with one
    warning. A resumed run rewrites the file from the rows of its checkpoint; it is then read from its start.
    """

    def __init__(self, file: str) -> None:
        """Start at the beginning of ``file``, local or a URL, which need not exist yet."""
        self.file = file
        self._read = 0
        self._last_line = b""
        """The line that ended at byte ``_read``; if the file has another one there, it was rewritten."""

    def new(self) -> list[dict[str, Any]]:
        """Rows since the last call; all of them if the file was rewritten.

        Raises:
            InputError: the file cannot be read.
        """
        filesystem, inner = storage.resolve(self.file)
        try:
            with filesystem.open_input_file(inner) as source:
                unread = self._unread(source)
        except FileNotFoundError:
            return []
        except OSError as error:
            mistake = f"{self.file}: cannot be read ({error}); make it readable"
            raise faults.refused(self.file, error, mistake) from None
        *lines, _ = unread.split(b"\n")
        if lines:
            self._last_line = lines[-1] + b"\n"
            self._read += sum(len(line) + 1 for line in lines)
        return [row for line in lines if (row := self._row(line)) is not None]

    def _unread(self, source: pa.NativeFile) -> bytes:
        if source.size() >= self._read:
            source.seek(self._read - len(self._last_line))
            found = bytes(source.read())
            if found.startswith(self._last_line):
                return found[len(self._last_line) :]
        self._read, self._last_line = 0, b""
        source.seek(0)
        return bytes(source.read())

    def _row(self, line: bytes) -> dict[str, Any] | None:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and "step" in row and all(map(_is_number, row.values())):
            return row
        say_once(f"{self.file}: {reprlib.repr(line)} is not a row of metrics and is left out")
        return None


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, int | float)
