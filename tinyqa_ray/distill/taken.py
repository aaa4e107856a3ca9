"""Optimiser steps that were launched: their figures are read, checked and logged a step late."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tinyqa_ray.distill.batches import Index, WindowData
from tinyqa_ray.distill.metrics_log import MetricsLog
from tinyqa_ray.distill.precision import NotFiniteError
from tinyqa_ray.distill.strategies import Strategy


class Taken:
    """An optimiser step that was launched, and its figures, which a GPU may still be computing.

    They are read a step late, so that the host launches a step while the device computes the one before.
    """

    def __init__(self, batch: Index, names: tuple[str, ...], figures: Tensor) -> None:
        """Begin to copy the figures to the host.

        Args:
            batch: windows of the global batch.
            names: the loss terms.
            figures: their values over the global batch, and the gradient's norm before clipping.
        """
        self.batch, self.names = batch, names
        self._figures = figures.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if figures.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def figures(self) -> tuple[dict[str, float], float]:
        """The loss terms, and the norm, once they are there: what was launched later is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        *terms, norm = self._figures.tolist()
        return dict(zip(self.names, terms, strict=True)), norm


class LateFigures:
    """Checks and logs the figures of each step once the next is launched.

    A host that reads a loss waits for the device, which then waits for the host to launch more. A step that
    was not finite thus is noticed when one more was launched, and before any checkpoint: ``settle`` comes
    first.
    """

    def __init__(
        self, metrics: MetricsLog, strategy: Strategy, data: WindowData, steps: int, log_steps: int
    ) -> None:
        """Log to ``metrics`` every ``log_steps`` of ``steps``, and the last."""
        self.metrics, self.strategy, self.data = metrics, strategy, data
        self.steps, self.log_steps = steps, log_steps
        self._last: tuple[int, Taken, float, float | None] | None = None

    def add(self, step: int, taken: Taken, learning_rate: float) -> None:
        """Hold the figures of a step, and check and log those of the step before.

        Raises:
            NotFiniteError: loss or gradient of the step before are not finite.
        """
        self.settle()
        # Read now: it may change with the next step.
        scale = self.strategy.loss_scale if self._logged(step) else None
        self._last = step, taken, learning_rate, scale

    def settle(self) -> None:
        """Check and log the figures that are held; afterwards none are.

        Raises:
            NotFiniteError: loss or gradient of that step are not finite; the message names its windows.
        """
        if self._last is None:
            return
        step, taken, rate, scale = self._last
        self._last = None
        terms, norm = taken.figures()
        if (what := self._not_finite(terms, norm)) is not None:
            shown = ", ".join(f"{name} {value:g}" for name, value in terms.items())
            where = at_windows(f"{what} ({shown})", taken.batch, self.data)
            raise NotFiniteError(f"step {step} of {self.steps}: {where}")
        self.metrics.count(len(taken.batch), int(self.data.lengths[taken.batch].sum()))
        if self._logged(step):
            self.metrics.add(step, self.steps, terms, norm, rate, scale)

    def _logged(self, step: int) -> bool:
        return step % self.log_steps == 0 or step == self.steps

    def _not_finite(self, terms: dict[str, float], norm: float) -> str | None:
        if all(map(math.isfinite, (*terms.values(), norm))):
            return None
        if self.strategy.loss_scale is not None:
            return None  # an overflow of fp16: the step was skipped
        if not all(map(math.isfinite, terms.values())):
            return "the loss is not finite"
        return f"the gradient's norm is {norm}"


def at_windows(what: str, batch: Index, data: WindowData) -> str:
    """What happened in a step, with the ids of its windows and the mend."""
    return (
        f"{what}, on windows {', '.join(map(str, data.window_ids(batch)))}; the last checkpoint, of a step "
        "before, is kept: lower --learning-rate, or look at those windows"
    )
