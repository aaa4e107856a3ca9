"""Least figures that a model must reach, as they are typed: ``f1=80``, or ``squadshifts:exact=70``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinyqa_ray.core.errors import InputError

FIGURES = ("exact", "f1", "has_ans_exact", "has_ans_f1", "no_ans_f1", "forced_exact", "forced_f1")
"""Figures of an evaluation that can be asked for."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The least value of one figure, in percent."""

    where: str | None
    """Name of a suite, or of a part of one; None is every suite."""
    figure: str
    least: float


def gates(given: Sequence[str]) -> tuple[Gate, ...]:
    """The gates that are written in ``given``, in their order.

    Raises:
        InputError: one is not of the form ``figure=percent`` or ``name:figure=percent``.
    """
    return tuple(map(_gate, given))


def _gate(text: str) -> Gate:
    left, equals, value = text.rpartition("=")
    where, _, figure = left.rpartition(":")
    if not equals:
        raise InputError(f"fail_below has {text!r}; write a figure and its least percentage, as in f1=80")
    if figure not in FIGURES:
        raise InputError(f"fail_below has {text!r}, but {figure!r} is none of {', '.join(FIGURES)}")
    try:
        least = float(value)
    except ValueError:
        least = math.nan
    if not 0.0 <= least <= 100.0:
        raise InputError(f"fail_below has {text!r}; {value!r} must be a percentage from 0 to 100")
    return Gate(where or None, figure, least)
