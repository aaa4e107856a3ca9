"""Optimiser steps that were launched: their figures are read, checked and logged a step late."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyqa_ray.distill.batches import Index, WindowData
from tinyqa_ray.distill.metrics_log import MetricsLog
from tinyqa_ray.distill.precision import NotFiniteError
from tinyqa_ray.distill.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Figures:
    """What a step came to, over the global batch."""

    terms: dict[str, float]
    """The loss terms."""
    norm: float
    """Norm of the gradient before clipping."""
    loss_scale: float | None
    """What fp16 multiplies the next loss by; None in other precisions."""


class Taken:
    """An optimiser step that was launched, and its figures, which a GPU may still be computing.

    They are read a step late, so that the host launches a step while the device computes the one before. What
    still makes it wait is transformers, which looks at the mask in each forward, unless that is compiled.
    """

    def __init__(
        self, batch: Index, names: tuple[str, ...], terms: Tensor, norm: Tensor, loss_scale: Tensor | None
    ) -> None:
        """Begin to copy the figures to the host.

        Args:
            batch: windows of the global batch.
            names: the loss terms.
            terms: their values over the global batch, ``(len(names),)``.
            norm: the gradient's norm before clipping, a scalar.
            loss_scale: what fp16 multiplies the next loss by, a scalar; None in other precisions.
        """
        self.batch, self.names = batch, names
        scalars = [norm] if loss_scale is None else [norm, loss_scale.to(norm.device)]
        figures = torch.cat([terms.float(), torch.stack([each.detach().float() for each in scalars])])
        self._figures = figures.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if figures.is_cuda else None  # type: ignore[no-untyped-call]
        if self._copied is not None:
            self._copied.record()

    def figures(self) -> Figures:
        """The figures, once they are there: what was launched later is not waited for."""
        if self._copied is not None:
            self._copied.synchronize()
        values, count = self._figures.tolist(), len(self.names)
        terms = dict(zip(self.names, values[:count], strict=True))
        norm, *scale = values[count:]
        return Figures(terms, norm, scale[0] if scale else None)


class LateFigures:
    """Checks and logs the figures of each step once the next is launched.

    A host that reads a loss waits for the device, which then waits for the host to launch more. A step that
    was not finite, or the last of too many that fp16 skipped, thus is noticed when one more was launched, and
    before any checkpoint: ``settle`` comes first.
    """

    def __init__(
        self, metrics: MetricsLog, strategy: Strategy, data: WindowData, steps: int, log_steps: int
    ) -> None:
        """Log to ``metrics`` every ``log_steps`` of ``steps``, and the last."""
        self.metrics, self.strategy, self.data = metrics, strategy, data
        self.steps, self.log_steps = steps, log_steps
        self._last: tuple[int, Taken, float] | None = None

    def add(self, step: int, taken: Taken, learning_rate: float) -> None:
        """Hold the figures of a step, and check and log those of the step before.

        Raises:
            NotFiniteError: loss or gradient of the step before are not finite, see ``settle``.
        """
        self.settle()
        self._last = step, taken, learning_rate

    def settle(self) -> None:
        """Check and log the figures that are held; afterwards none are.

        Raises:
            NotFiniteError: loss or gradient of that step are not finite and it was taken, or it is the
                twentieth in a row that fp16 skipped; the message names its windows.
        """
        if self._last is None:
            return
        step, taken, rate = self._last
        self._last = None
        found = taken.figures()
        if (what := self._wrong(found)) is not None:
            shown = ", ".join(f"{name} {value:g}" for name, value in found.terms.items())
            windows = ", ".join(map(str, self.data.window_ids(taken.batch)))
            raise NotFiniteError(
                f"step {step} of {self.steps}: {what} ({shown}), on windows {windows}; the last checkpoint, "
                "of a step before, is kept: lower --learning-rate, or look at those windows"
            )
        self.metrics.count(len(taken.batch), int(self.data.lengths[taken.batch].sum()))
        if step % self.log_steps == 0 or step == self.steps:
            self.metrics.add(step, self.steps, found.terms, found.norm, rate, found.loss_scale)

    def _wrong(self, found: Figures) -> str | None:
        """What ends the run, if anything does."""
        is_finite = math.isfinite(found.norm)
        if found.loss_scale is not None:
            return self.strategy.overflows.count(is_finite, found.loss_scale)
        if not all(map(math.isfinite, found.terms.values())):
            return "the loss is not finite"
        return None if is_finite else f"the gradient's norm is {found.norm}"
