"""The page that shows how a reader did on a SQuAD 2.0 file: numbers, plots and examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tinyqa_ray import html
from tinyqa_ray.errors import InputError

LENGTH_BINS = ("1", "2", "3", "4-5", "6-9", "10+")
"""Names of the bins of `f1_by_length`, in words of the shortest gold answer."""
_LENGTH_STARTS = (2, 3, 4, 6, 10)
_HISTOGRAM_BINS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One question with its passage, the gold answer and the prediction."""

    question: str
    context: str
    gold: str | None
    """None when the passage holds no answer."""
    predicted: str | None
    """None when the reader abstained."""
    start: int
    """First character of ``predicted`` in ``context``; 0 when there is none."""
    end: int
    """One past the last character of ``predicted`` in ``context``; 0 when there is none."""
    na_prob: float
    f1: float
    """F1 of the prediction shown, 0 to 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """All that `evaluation_html` shows; the arrays have one entry for each of the n questions."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """(name, value): the model, the data, the windows, versions."""
    metrics: tuple[tuple[str, str, str], ...]
    """(name, formatted value, one-line explanation)."""
    na_probs: NDArray[np.float64]
    """(n,) probability that the question has no answer, 0 to 1."""
    f1: NDArray[np.float64]
    """(n,) F1 of the best span before any abstaining, 0 to 1; unanswerable: 1 if the prediction is empty."""
    answerable: NDArray[np.bool_]
    """(n,) whether the gold data hold an answer."""
    answer_tokens: NDArray[np.int64]
    """(n,) words in the shortest gold answer; 0 when unanswerable."""
    threshold: float
    """The reader abstains when ``na_prob > threshold``; 0 to 1."""
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        shapes = {
            name: getattr(self, name).shape for name in ("na_probs", "f1", "answerable", "answer_tokens")
        }
        if len(set(shapes.values())) != 1 or self.na_probs.ndim != 1:
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(f"arrays of a report have shapes {given}; all must be (n,) with the same n")
        for name in ("na_probs", "f1", "threshold"):
            values = np.asarray(getattr(self, name))
            # Written so that NaN fails too.
            if not bool(np.all((values >= 0.0) & (values <= 1.0))):
                raise InputError(f"{name} of a report has values outside [0, 1] or NaN; give fractions")


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


def evaluation_html(report: EvaluationReport) -> str:
    """Return the whole page as one self-contained HTML document, the same text for the same report."""
    with html.plot_style():
        plots = "\n".join((_threshold_plot(report), _na_prob_plot(report), _length_plot(report)))
    parts = [
        html.cards(report.metrics),
        f'<h2>Plots</h2>\n<div class="plots">\n{plots}\n</div>',
        f"<h2>Setup</h2>\n{html.table(report.facts)}",
    ]
    right = [example for example in report.examples if example.f1 >= 1.0]
    others = [example for example in report.examples if example.f1 < 1.0]
    for heading, examples in (("Right", right), ("Wrong or partly right", others)):
        if examples:
            articles = "\n".join(map(_example, examples))
            parts.append(f"<h2>{heading}</h2>\n{articles}")
    return html.page(report.title, "\n".join(parts))


def _example(example: Example) -> str:
    kind = "right" if example.f1 >= 1.0 else "partly" if example.f1 > 0.0 else "wrong"
    words = {"right": "Right", "partly": f"Partly right, F1 {100 * example.f1:.0f}", "wrong": "Wrong"}

    def answer(text: str | None) -> str:
        return "<i>no answer</i>" if text is None else f'<b dir="auto">{escape(text)}</b>'

    return (
        f'<article>\n<h3 dir="auto">{escape(example.question)}</h3>\n'
        f'<p><span class="tag {kind}">{words[kind]}.</span> Predicted: {answer(example.predicted)}. '
        f"Gold: {answer(example.gold)}. "
        f'<span class="muted">No-answer probability {example.na_prob:.3f}</span></p>\n'
        f'<p class="passage" dir="auto">{html.marked(example.context, example.start, example.end)}</p>\n'
        "</article>"
    )


def _axes(x_label: str, y_label: str, missing: Sequence[str]) -> tuple[Figure, Axes]:
    """Return a new figure whose title line names the splits that have no questions."""
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if missing:
        axes.set_title("No " + " and no ".join(missing), fontsize=9.0, color=html.MUTED, loc="left")
    return figure, axes


def _missing(report: EvaluationReport) -> list[str]:
    if report.answerable.size == 0:
        return ["questions"]
    present = {"answerable questions": report.answerable, "unanswerable questions": ~report.answerable}
    return [name for name, split in present.items() if not split.any()]


def _mark_threshold(axes: Axes, threshold: float) -> None:
    axes.set_xlim(-0.01, 1.01)
    axes.axvline(threshold, color=html.INK, linewidth=1.0, linestyle=":", label=f"threshold {threshold:.3g}")


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, borderaxespad=0.2)


def _threshold_plot(report: EvaluationReport) -> str:
    grid = np.union1d(np.linspace(0.0, 1.0, 201), [report.threshold])
    curve = threshold_curve(report.na_probs, report.f1, report.answerable, grid)
    figure, axes = _axes("No-answer threshold", "F1 (%)", _missing(report))
    # The line of all questions is widest and lowest: with one split only, both stay visible.
    lines = (
        ("all questions", curve.overall, html.INK, 2.8),
        ("answerable", curve.answerable, html.BLUE, 1.6),
        ("unanswerable", curve.unanswerable, html.ORANGE, 1.6),
    )
    for name, values, color, width in lines:
        if not np.isnan(values).any():
            axes.plot(grid, 100 * values, color=color, linewidth=width, drawstyle="steps-post", label=name)
    if report.answerable.size:
        level = 100 * float(np.mean(~report.answerable))
        axes.axhline(level, color=html.MUTED, linewidth=1.2, linestyle="--", label="always abstain (all)")
    _mark_threshold(axes, report.threshold)
    axes.set_ylim(-1.0, 102.0)
    _legend(figure)
    caption = (
        "The reader abstains when its no-answer probability is above the threshold: moving right it answers "
        "more questions, so answerable ones gain and unanswerable ones lose; a useful reader keeps the line "
        "of all questions above the dashed one."
    )
    return html.captioned(html.figure_svg(figure, "F1 against the no-answer threshold"), caption)


def _na_prob_plot(report: EvaluationReport) -> str:
    figure, axes = _axes("No-answer probability", "Share of questions (%)", _missing(report))
    splits = (
        ("answerable", report.answerable, html.BLUE),
        ("unanswerable", ~report.answerable, html.ORANGE),
    )
    for name, split, color in splits:
        if split.any():
            counts, edges = np.histogram(report.na_probs[split], bins=_HISTOGRAM_BINS, range=(0.0, 1.0))
            share = 100 * counts / split.sum()
            axes.stairs(share, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(share, edges, color=color, linewidth=1.5, label=f"{name} ({split.sum():,})")
    _mark_threshold(axes, report.threshold)
    axes.set_ylim(bottom=0.0)
    _legend(figure)
    caption = (
        "Each colour adds up to 100%: the less the two overlap, the better the reader tells questions "
        "without an answer, and the threshold should fall between them."
    )
    return html.captioned(html.figure_svg(figure, "Histogram of the no-answer probability"), caption)


def _length_plot(report: EvaluationReport) -> str:
    split = report.answerable
    counts, means = f1_by_length(report.f1[split], report.answer_tokens[split])
    missing = [] if split.any() else ["answerable questions"]
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
