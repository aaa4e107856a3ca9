"""The page that shows how a reader did on a SQuAD 2.0 file: numbers, plots and examples."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core import html
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate import plots


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
    scores: NDArray[np.float64]
    """(m,) score of each best span, 0 to 1; a question without a span has none."""
    right: NDArray[np.float64]
    """(m,) how right that span is, 0 to 1: its F1, 0 where there is no answer."""
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        shapes = {
            name: getattr(self, name).shape for name in ("na_probs", "f1", "answerable", "answer_tokens")
        }
        if len(set(shapes.values())) != 1 or self.na_probs.ndim != 1:
            given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
            raise InputError(f"arrays of a report have shapes {given}; all must be (n,) with the same n")
        if self.scores.shape != self.right.shape:
            given = f"scores {self.scores.shape}, right {self.right.shape}"
            raise InputError(f"arrays of a report have shapes {given}; both must be (m,) with the same m")
        for name in ("na_probs", "f1", "threshold", "scores", "right"):
            values = np.asarray(getattr(self, name))
            # Written so that NaN fails too.
            if not bool(np.all((values >= 0.0) & (values <= 1.0))):
                raise InputError(f"{name} of a report has values outside [0, 1] or NaN; give fractions")


def evaluation_html(report: EvaluationReport) -> str:
    """Return the whole page as one self-contained HTML document, the same text for the same report."""
    with html.plot_style():
        drawn = "\n".join(
            (
                plots.thresholds(report.na_probs, report.f1, report.answerable, report.threshold),
                plots.na_probs(report.na_probs, report.answerable, report.threshold),
                plots.reliability(report.scores, report.right),
                plots.lengths(report.f1[report.answerable], report.answer_tokens[report.answerable]),
            )
        )
    parts = [
        html.cards(report.metrics),
        f'<h2>Plots</h2>\n<div class="plots">\n{drawn}\n</div>',
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
