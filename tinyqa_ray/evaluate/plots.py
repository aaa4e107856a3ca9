"""The plots of a report, each as a captioned SVG, and the curves in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tinyqa_ray.core import html
from tinyqa_ray.evaluate import calibration

LENGTH_BINS = ("1", "2", "3", "4-5", "6-9", "10+")
"""Names of the bins of `f1_by_length`, in words of the shortest gold answer."""
_LENGTH_STARTS = (2, 3, 4, 6, 10)
_HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdCurve:
    """Mean F1 (0 to 1) at each threshold, shape (t,); NaN throughout for a split without questions."""

    thresholds: NDArray[np.float64]
    overall: NDArray[np.float64]
    answerable: NDArray[np.float64]
    unanswerable: NDArray[np.float64]


def threshold_curve(
    na_probs: NDArray[np.float64],
    f1: NDArray[np.float64],
    answerable: NDArray[np.bool_],
    thresholds: NDArray[np.float64],
) -> ThresholdCurve:
    """Compute F1 for each no-answer threshold as SQuAD 2.0 does (Rajpurkar et al., arXiv 1806.03822).

    A question with ``na_prob > threshold`` is answered with nothing and scores 1 if it is unanswerable, else
    0. All other questions keep their raw score.

    Args:
        na_probs: (n,) no-answer probabilities.
        f1: (n,) raw scores before abstaining.
        answerable: (n,) whether there is a gold answer.
        thresholds: (t,) in any order.
    """
    when_abstaining = (~answerable).astype(np.float64)

    def mean(split: NDArray[np.bool_]) -> NDArray[np.float64]:
        count = int(split.sum())
        if count == 0:
            return np.full(thresholds.shape, np.nan)
        order = np.argsort(na_probs[split], kind="stable")
        answered = np.searchsorted(na_probs[split][order], thresholds, side="right")
        raw = np.concatenate(([0.0], np.cumsum(f1[split][order])))
        abstained = np.concatenate(([0.0], np.cumsum(when_abstaining[split][order])))
        return np.asarray((raw[answered] + abstained[-1] - abstained[answered]) / count, dtype=np.float64)

    return ThresholdCurve(
        thresholds=thresholds,
        overall=mean(np.ones_like(answerable)),
        answerable=mean(answerable),
        unanswerable=mean(~answerable),
    )


def f1_by_length(
    f1: NDArray[np.float64], answer_tokens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Count questions and average F1 in each bin of `LENGTH_BINS`.

    Args:
        f1: (n,) scores of answerable questions.
        answer_tokens: (n,) words in the shortest gold answer; an answer of 0 words counts in the first bin.

    Returns:
        counts (6,) and mean F1 (6,), NaN in an empty bin.
    """
    bins = np.digitize(answer_tokens, _LENGTH_STARTS)
    counts = np.bincount(bins, minlength=len(LENGTH_BINS))
    sums = np.bincount(bins, weights=f1, minlength=len(LENGTH_BINS))
    means = np.divide(sums, counts, out=np.full(len(LENGTH_BINS), np.nan), where=counts > 0)
    return counts, means


def _axes(x_label: str, y_label: str, missing: Sequence[str]) -> tuple[Figure, Axes]:
    """Return a new figure whose title line names the splits that have no questions."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if missing:
        axes.set_title("No " + " and no ".join(missing), fontsize=9.0, color=html.MUTED, loc="left")
    return figure, axes


def _missing(answerable: NDArray[np.bool_]) -> list[str]:
    if answerable.size == 0:
        return ["questions"]
    present = {"answerable questions": answerable, "unanswerable questions": ~answerable}
    return [name for name, split in present.items() if not split.any()]


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.axvline(threshold, color=html.INK, linewidth=1.0, linestyle=":", label=f"threshold {threshold:.3g}")


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, borderaxespad=0.2)


def thresholds(
    na_probs: NDArray[np.float64], f1: NDArray[np.float64], answerable: NDArray[np.bool_], threshold: float
) -> str:
    """F1 at every threshold, with the reader's own one marked; see ``threshold_curve`` for the arguments."""
    grid = np.union1d(np.linspace(0.0, 1.0, 201), [threshold])
    curve = threshold_curve(na_probs, f1, answerable, grid)
    figure, axes = _axes("No-answer threshold", "F1 (%)", _missing(answerable))
    # The line of all questions is the widest and drawn first: with one split only, both lines stay visible.
    lines = (
        ("all questions", curve.overall, html.INK, 2.8),
        ("answerable", curve.answerable, html.BLUE, 1.6),
        ("unanswerable", curve.unanswerable, html.ORANGE, 1.6),
    )
    for name, values, color, width in lines:
        if not np.isnan(values).any():
            axes.plot(grid, 100 * values, color=color, linewidth=width, drawstyle="steps-post", label=name)
    if answerable.size:
        level = 100 * float(np.mean(~answerable))
        axes.axhline(level, color=html.MUTED, linewidth=1.2, linestyle="--", label="always abstain (all)")
    _mark_threshold(axes, threshold)
    axes.set_ylim(-1.0, 102.0)
    _legend(figure)
    caption = (
        "The reader abstains when its no-answer probability is above the threshold: moving right it answers "
        "more questions, so answerable ones gain and unanswerable ones lose; a useful reader keeps the line "
        "of all questions above the dashed one."
    )
    return html.captioned(html.figure_svg(figure, "F1 against the no-answer threshold"), caption)


def na_probs(probabilities: NDArray[np.float64], answerable: NDArray[np.bool_], threshold: float) -> str:
    """Histogram of the no-answer probability, ``(n,)``, of answerable and of unanswerable questions."""
    figure, axes = _axes("No-answer probability", "Share of questions (%)", _missing(answerable))
    splits = (("answerable", answerable, html.BLUE), ("unanswerable", ~answerable, html.ORANGE))
    for name, split, color in splits:
        if split.any():
            counts, edges = np.histogram(probabilities[split], bins=_HISTOGRAM_BINS, range=(0.0, 1.0))
            share = 100 * counts / split.sum()
            axes.stairs(share, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(share, edges, color=color, linewidth=1.5, label=f"{name} ({split.sum():,})")
    _mark_threshold(axes, threshold)
    axes.set_ylim(bottom=0.0)
    _legend(figure)
    caption = (
        "Each colour adds up to 100%: the less the two overlap, the better the reader tells questions "
        "without an answer, and the threshold should fall between them."
    )
    return html.captioned(html.figure_svg(figure, "Histogram of the no-answer probability"), caption)


def reliability(scores: NDArray[np.float64], right: NDArray[np.float64]) -> str:
    """How right spans are, plotted against their scores in bins of scores; both ``(m,)``."""
    found = calibration.reliability(scores, right)
    figure, axes = _axes("Score", "How right (mean F1, %)", [] if scores.size else ["answers"])
    axes.plot([0, 1], [0, 100], color=html.MUTED, linewidth=1.2, linestyle="--", label="as right as it says")
    full = found.counts > 0
    points = (found.scores[full], 100 * found.right[full])
    axes.plot(*points, color=html.BLUE, linewidth=1.6, marker="o", markersize=4, label="best spans")
    for count, x, y in zip(found.counts[full], *points, strict=True):
        axes.annotate(
            f"{count:,}", (x, y), xytext=(4, -9), textcoords="offset points", fontsize=8.5, color=html.MUTED
        )
    axes.set_xlim(-0.02, 1.06)
    axes.set_ylim(-2.0, 104.0)
    _legend(figure)
    caption = (
        "The best span of every question, in ten bins of scores, with how many each holds: on the dashed "
        "line, 70% of what has a score of 0.7 is right. Below it the scores promise too much; a scale "
        "fitted on other data (--fit-temperature) brings them there."
    )
    return html.captioned(html.figure_svg(figure, "How right answers are against their score"), caption)


def lengths(f1: NDArray[np.float64], answer_tokens: NDArray[np.int64]) -> str:
    """Mean F1 of answerable questions by length of the answer; see ``f1_by_length`` for the arguments."""
    counts, means = f1_by_length(f1, answer_tokens)
    missing = [] if f1.size else ["answerable questions"]
    figure, axes = _axes("Words in the shortest gold answer", "Mean F1 (%)", missing)
    heights = 100 * np.nan_to_num(means)
    axes.bar(range(len(counts)), heights, width=0.7, color=html.BLUE)
    for position, (count, height) in enumerate(zip(counts, heights, strict=True)):
        axes.annotate(
            f"n={count:,}",
            (position, height),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=html.MUTED,
        )
    axes.set_xticks(range(len(counts)), LENGTH_BINS)
    axes.set_ylim(0.0, 108.0)
    axes.set_yticks(range(0, 101, 20))
    caption = (
        "Answerable questions only, each with its best span and no abstaining: bars that fall to the right "
        "mean that long answers are harder, and a bar over few questions (n) says little."
    )
    return html.captioned(html.figure_svg(figure, "Mean F1 by answer length"), caption)
