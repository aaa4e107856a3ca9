"""Teachers' logits in the half precision of the files: what overflows is computed again, or shifted."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.said import say_once
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.engines.load import load_engine

Logits = NDArray[np.float32]

LARGEST = float(np.finfo(np.float16).max)
"""Largest number of half precision, 65504."""


class NotFiniteError(InputError):
    """A teacher's logits are not finite in fp32 either; ``windows`` are the numbers of those windows."""

    def __init__(self, message: str, windows: Sequence[int]) -> None:
        super().__init__(message)
        self.windows = windows


class FiniteTeacher:
    """A teacher whose logits are finite: windows that overflow in half precision are computed in fp32."""

    def __init__(self, model: str, device: str) -> None:
        """Load the teacher; its form in fp32 is loaded when it is first needed."""
        self.model = model
        self.engine: Engine = load_engine(model, device=device)[0]
        self._load_in_fp32 = functools.cache(lambda: load_engine(model, device=device, precision="fp32")[0])
        self._loading = threading.Lock()

    def _in_fp32(self) -> Engine:
        """The teacher in fp32; loaded once, whichever thread asks first."""
        with self._loading:
            return self._load_in_fp32()

    def logits(
        self, windows: Tokens, max_batch_tokens: int | None = None
    ) -> tuple[list[Logits], list[Logits]]:
        """See ``Engine.logits``.

        Raises:
            NotFiniteError: fp32 does not help, or an export has no other precision.
        """
        starts, ends = self.engine.logits(windows, max_batch_tokens)
        broken = _not_finite(starts, ends)
        if broken and not is_exported(self.model):
            say_once(
                f"{self.model}: logits overflow in half precision; such windows are computed again in fp32"
            )
            few = Tokens([windows.input_ids[w] for w in broken], [windows.type_ids[w] for w in broken])
            again = self._in_fp32().logits(few, max_batch_tokens)
            for window, start, end in zip(broken, *again, strict=True):
                starts[window], ends[window] = start, end
            broken = _not_finite(starts, ends)
        if broken:
            raise NotFiniteError(
                f"{self.model}: the logits of {len(broken)} of {len(windows)} windows are not finite"
                f"{self._why_not_finite()}",
                broken,
            )
        return starts, ends

    def _why_not_finite(self) -> str:
        """The end of a refusal: why logits are not finite, and what to do."""
        exported = getattr(self.engine, "precision", "fp32")
        if is_exported(self.model) and exported != "fp32":
            return (
                f"; the export computes in {exported} and cannot be computed again in another precision: "
                "export its model with --precision fp32, or give the model itself"
            )
        return ", even in fp32; its weights are broken: leave it out, or train it again"


def in_half_precision(side: Logits, lengths: NDArray[Any]) -> NDArray[np.float16]:
    """Start logits or end logits of windows, rounded to half precision.

    Where a window has a number beyond ±65504, its largest logit is subtracted from all of its logits, and
    what is still below -65504 becomes -65504. A softmax over the window stays the same, since a constant
    cancels in it and e to the power of -65504 is 0; so do all differences within the window, such as a
    span's score less the null score. The logits of such a window can no longer be compared with those of
    the question's other windows, which no objective does. One shift for all windows of a question would keep
    that, but half precision has steps of 32 at that height: a window far below the highest one would lose
    its softmax. All other windows are left as they are.

    Args:
        side: logits of all windows, end to end.
        lengths: tokens of each window, ``(W,)``.
    """
    beyond = np.abs(side) > LARGEST
    if not beyond.any():
        return side.astype(np.float16)
    side = side.copy()
    ends = np.cumsum(lengths)
    for window in np.unique(np.searchsorted(ends, np.flatnonzero(beyond), side="right")):
        row = side[ends[window] - lengths[window] : ends[window]]
        row -= row.max()
        np.maximum(row, -LARGEST, out=row)
    say_once("logits beyond ±65504 do not fit into the files; the windows that have some are shifted")
    return side.astype(np.float16)


def _not_finite(starts: Sequence[Logits], ends: Sequence[Logits]) -> list[int]:
    """Numbers of the windows with a logit that is not finite."""
    both = zip(starts, ends, strict=True)
    return [w for w, sides in enumerate(both) if not all(np.isfinite(side).all() for side in sides)]
