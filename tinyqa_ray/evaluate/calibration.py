"""The scale that makes a score the share of right answers (Platt 1999; Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_BETAS = (0.01, 100.0)
"""Smallest and largest 1 / temperature."""
_BINS = 10
_STEPS = 100
_SMALL = 1e-8
"""A gradient below this, of a loss whose values are about 1, ends the search."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Margins ``span - null`` as scores: ``sigmoid((margin - shift) / temperature)``."""

    temperature: float
    shift: float

    def scores(self, margins: Float) -> Float:
        """Scores in [0, 1], of the shape of the margins."""
        return _sigmoid((margins - self.shift) / self.temperature)


def best_scale(margins: Float, right: Float) -> Scale:
    """The scale with the smallest cross entropy of its scores against ``right``: Platt scaling.

    A temperature alone cannot correct a model that too often answers unanswerable questions: it can only
    move every score towards one half.

    Args:
        margins: ``span - null`` of each question's best span, ``(n,)``.
        right: how right that span is, in [0, 1]: its F1, 0 where there is no answer; ``(n,)``.

    Returns:
        a scale with a temperature in [0.01, 100]. The loss is jointly convex in ``1 / temperature`` and
        ``shift / temperature``, so that the search cannot end in a local minimum.
    """
    assert margins.shape == right.shape, (margins.shape, right.shape)
    centre, spread = float(margins.mean()), float(margins.std()) or 1.0
    z = (margins - centre) / spread  # standardised, so that the search converges well

    slope, bias = _fitted(z, right, (_BETAS[0] * spread, _BETAS[1] * spread))
    temperature = spread / slope
    return Scale(temperature=temperature, shift=centre - bias * temperature)


def _fitted(z: Float, right: Float, slopes: tuple[float, float]) -> tuple[float, float]:
    """Slope and bias with the smallest cross entropy of ``sigmoid(slope * z + bias)`` against ``right``.

    Newton's method, with the slope held within its bounds (Bertsekas 1982, projected Newton methods).
    """
    lowest, highest = slopes
    at = np.array([lowest, 0.0])

    def loss(point: Float) -> float:
        logits = point[0] * z + point[1]
        # log(1 + e^x) - right * x, without overflow
        return float(np.mean(np.logaddexp(0.0, logits) - right * logits))

    for _ in range(_STEPS):
        chance = _sigmoid(at[0] * z + at[1])
        gradient = np.array([np.mean((chance - right) * z), np.mean(chance - right)])
        weights = chance * (1.0 - chance)
        mixed = np.mean(weights * z)
        curvature = np.array([[np.mean(weights * z * z), mixed], [mixed, np.mean(weights)]])
        held = (at[0] <= lowest and gradient[0] > 0) or (at[0] >= highest and gradient[0] < 0)
        if held:  # only the bias can still fall
            gradient[0], curvature[0, 1], curvature[1, 0] = 0.0, 0.0, 0.0
        if np.abs(gradient).max() < _SMALL:
            break
        step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
        before, share = loss(at), 1.0
        while True:
            tried = at - share * step
            tried[0] = min(max(tried[0], lowest), highest)
            if loss(tried) < before:
                break
            share /= 2
            if share < _SMALL:  # rounding is all that is left to gain
                return float(at[0]), float(at[1])
        at = tried
    return float(at[0]), float(at[1])


def _sigmoid(logits: Float) -> Float:
    """``1 / (1 + exp(-logits))`` without overflow."""
    values: Float = np.exp(-np.logaddexp(0.0, -logits))
    return values


@dataclass(frozen=True, slots=True)
class Reliability:
    """How right answers are, in ten bins of their scores; arrays ``(10,)``, NaN in an empty bin."""

    counts: NDArray[np.int64]
    scores: Float
    """Mean score."""
    right: Float
    """Mean share that is right."""


def reliability(scores: Float, right: Float) -> Reliability:
    """The curve of a reliability diagram; for the arguments see ``calibration_error``."""
    number = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(number, minlength=_BINS)

    def mean(values: Float) -> Float:
        sums = np.bincount(number, values, minlength=_BINS)
        means: Float = np.divide(sums, counts, out=np.full(_BINS, np.nan), where=counts > 0)
        return means

    return Reliability(counts=counts, scores=mean(scores), right=mean(right))


def calibration_error(scores: Float, right: Float) -> float:
    """Expected calibration error: mean distance between score and share of right answers, over ten bins.

    Args:
        scores: in [0, 1], ``(n,)``.
        right: how right each answer is, in [0, 1], ``(n,)``.
    """
    found = reliability(scores, right)
    return float(np.nansum(found.counts * np.abs(found.scores - found.right)) / len(scores))
