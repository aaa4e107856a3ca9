"""The scale that makes a score the share of right answers (Platt 1999; Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

Float = NDArray[np.float64]

_BETAS = (0.01, 100.0)
"""Smallest and largest 1 / temperature."""
_BINS = 10


@dataclass(frozen=True, slots=True)
class Scale:
    """Margins ``span - null`` as scores: ``sigmoid((margin - shift) / temperature)``."""

    temperature: float
    shift: float

    def scores(self, margins: Float) -> Float:
        """Scores in [0, 1], of the shape of the margins."""
        scores: Float = special.expit((margins - self.shift) / self.temperature)
        return scores


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

    def loss(slope_and_bias: Float) -> tuple[float, list[float]]:
        """The cross entropy of ``sigmoid(slope * z + bias)`` and its gradient."""
        slope, bias = slope_and_bias
        logits = slope * z + bias
        over = special.expit(logits) - right
        # log(1 + e^x) - right * x, without overflow
        entropy = np.mean(np.logaddexp(0.0, logits) - right * logits)
        return float(entropy), [float(np.mean(over * z)), float(np.mean(over))]

    slopes = tuple(beta * spread for beta in _BETAS)
    found = optimize.minimize(
        loss, (slopes[0], 0.0), jac=True, bounds=(slopes, (None, None)), method="L-BFGS-B"
    )
    slope, bias = map(float, found.x)
    temperature = spread / slope
    return Scale(temperature=temperature, shift=centre - bias * temperature)


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
