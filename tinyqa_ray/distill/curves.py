"""The rows of a run's metrics: written by rank 0 of the workers, read by whoever watches."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from tinyqa_ray import storage

_LONGEST_PAUSE_S = 60.0
"""Between two writes of the rows, whatever they cost."""


class Curves:
    """Rows of a run's metrics; they travel with the checkpoint, so a resumed curve has no gap or repeat."""

    def __init__(self, file: str | None) -> None:
        """Keep the rows in ``file``, as JSON lines; None keeps them here alone."""
        self.file = file
        self.rows: list[dict[str, float | None]] = []
        self._written = self._cost = 0.0
        self._begin()

    def _begin(self) -> None:
        self._since = time.monotonic()
        self._samples = self._tokens = 0

    def count(self, samples: int, tokens: int) -> None:
        """Count windows and real tokens of a step towards the speed of the next row."""
        self._samples += samples
        self._tokens += tokens

    def add(
        self,
        step: int,
        steps: int,
        terms: dict[str, float],
        grad_norm: float,
        learning_rate: float,
        loss_scale: float | None,
    ) -> None:
        """Append a row, and rewrite the file now and then; it also tells the driver how far the run is."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        # JSON has no infinity, which the norm is where fp16 overflowed and the step was skipped.
        norm = grad_norm if math.isfinite(grad_norm) else None
        row = {"step": step, "steps": steps, "loss": sum(terms.values()), **terms, "grad_norm": norm}
        speed = {"samples_per_s": self._samples / seconds, "tokens_per_s": self._tokens / seconds}
        scale = {} if loss_scale is None else {"loss_scale": loss_scale}
        self.rows.append({**row, "learning_rate": learning_rate, **speed, **scale})
        self._begin()
        # A long file, or a slow store, is rewritten less often than rows come; one slow write is no rule.
        pause_s = min(20 * self._cost, _LONGEST_PAUSE_S)
        if step == steps or time.monotonic() - self._written > pause_s:
            self._write()

    def resume(self, rows: list[dict[str, float | None]]) -> None:
        """Go on after the rows of a checkpoint; those that came after it are no longer true."""
        self.rows = rows
        self._write()

    def _write(self) -> None:
        if self.file is None:
            return
        began = time.monotonic()
        lines = "".join(json.dumps(line) + "\n" for line in self.rows)
        storage.write_atomic(self.file, lines.encode())
        self._written = time.monotonic()
        self._cost = self._written - began


def read_rows(file: str) -> list[dict[str, Any]]:
    """Rows that a run has written so far."""
    if storage.kind(file) != "file":
        return []
    return [json.loads(line) for line in storage.read_bytes(file).splitlines()]
