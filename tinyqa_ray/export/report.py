"""What an export reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What an engine scores and does, F1 in percent; None where the data has no such question."""

    f1: float
    """F1 at the model's threshold."""
    forced_f1: float | None
    """F1 of answerable questions when it must answer."""
    questions_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """An export beside its model."""

    precision: str
    float_products: str
    """Which matrix products stayed in float."""
    megabytes: float
    questions: int
    """Questions that both were asked; none of them was used for calibration."""
    model: Any
    """``Figures`` of the model; None when no data was given."""
    export: Any
    """``Figures`` of the export."""
