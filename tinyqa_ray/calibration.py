"""The temperature that makes a score the share of right answers (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

_BETAS = (0.01, 100.0)
"""Smallest and largest 1 / temperature."""


def best_temperature(margins: Float, right: Float) -> float:
    """The temperature T with the smallest cross entropy of ``sigmoid(margin / T)`` against ``right``.

    Args:
        margins: ``span - null`` of each question's best span, ``(n,)``.
        right: how right that span is, in [0, 1]: its F1, 0 where there is no answer; ``(n,)``.

    Returns:
        a temperature in [0.01, 100]. The loss is convex in 1 / T, so that the search cannot be trapped.
    """
    assert margins.shape == right.shape, (margins.shape, right.shape)
    low, high = np.log(_BETAS)
    golden = (5**0.5 - 1) / 2
    # Golden-section search: convex in beta, so with a single valley also in log beta.
    while high - low > 1e-6:
        one, two = high - golden * (high - low), low + golden * (high - low)
        if cross_entropy(margins, right, np.exp(-one)) <= cross_entropy(margins, right, np.exp(-two)):
            high = two
        else:
            low = one
    return float(np.exp(-(low + high) / 2))


def cross_entropy(margins: Float, right: Float, temperature: float) -> float:
    """Mean cross entropy, in nats, of ``sigmoid(margin / temperature)`` against ``right``."""
    logits = margins / temperature
    # log(1 + e^x) - right * x, without overflow
    return float(np.mean(np.logaddexp(0.0, logits) - right * logits))


@dataclass(frozen=True, slots=True)
class Reliability:
    """How right answers are in bins of their scores, ``(bins,)`` each; NaN in an empty bin."""

    counts: NDArray[np.int64]
    scores: Float
    """Mean score."""
    right: Float
    """Mean of how right they are."""


def reliability(scores: Float, right: Float, bins: int = 10) -> Reliability:
    """The curve of a reliability diagram; arguments as of ``calibration_error``."""
    number = np.minimum((scores * bins).astype(int), bins - 1)
    counts = np.bincount(number, minlength=bins)

    def mean(values: Float) -> Float:
        sums = np.bincount(number, values, minlength=bins)
        means: Float = np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)
        return means

    return Reliability(counts=counts, scores=mean(scores), right=mean(right))


def calibration_error(scores: Float, right: Float, bins: int = 10) -> float:
    """Expected calibration error: mean distance of score and share of right answers, over bins of scores.

    Args:
        scores: in [0, 1], ``(n,)``.
        right: how right each answer is, in [0, 1], ``(n,)``.
        bins: of equal width.
    """
    found = reliability(scores, right, bins)
    return float(np.nansum(found.counts * np.abs(found.scores - found.right)) / len(scores))
