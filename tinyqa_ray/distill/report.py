"""What a training stage reports."""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINTS = "checkpoints"
"""Where a training run keeps its checkpoints, within its output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillReport:
    """What a training stage did."""

    windows: int
    steps: int
    loss: float | None
    """Loss of the last step logged that fp16 did not skip; None where it skipped all of them."""
    parameters: int
    """Parameters of the student."""
    model_bytes: int
    """Size of the student's weights on disk, in bytes."""
    published_step: int
    """Step whose student was published as ``model``."""
    dev_exact: float | None = None
    """EM of that student on dev, in percent, at its own threshold; None where nothing was measured."""
    dev_f1: float | None = None
    """F1 of that student, likewise."""
    dev_best_f1: float | None = None
    """F1 of that student at the threshold that is best on dev."""
