"""What an export reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """F1, in percent, and speed of an engine."""

    f1: float
    """F1 at the model's threshold."""
    forced_f1: float | None
    """F1 on answerable questions when the model must answer; None if the data has no such question."""
    questions_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """An export in comparison with its model."""

    precision: str
    float_products: str
    """Which matrix products stayed in float."""
    megabytes: float
    questions: int
    """Number of questions that both were asked; none of them was used for calibration."""
    model: Any
    """``Figures`` of the model; None when no data was given."""
    export: Any
    """``Figures`` of the export; None when no data was given."""
    format: str = "openvino"
