"""Readings → answers: scores, the no-answer threshold, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.spans import Reading, Span, sigmoid


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or ``answer=None`` when the context holds none.

    ``context[start:end] == answer`` in Python characters. ``score`` is ``sigmoid((span - null - s) / T)``,
    with the model's shift s and temperature T: the answer's chance against no answer, comparable across
    contexts. For a None answer it is the chance of no answer. ``na_prob`` is the official
    ``sigmoid(null - best)``, which is compared with the threshold. ``error`` says why a pair could not be
    asked.
    """

    answer: str | None
    score: float
    start: int
    end: int
    na_prob: float
    document_id: str | None = None
    error: str | None = None


def refused(error: str) -> Answer:
    """The answer to a pair that cannot be asked."""
    return Answer(None, 0.0, 0, 0, 1.0, error=error)


def answers(
    reading: Reading, context: str, settings: ModelSettings, top_k: int, document_id: str | None = None
) -> list[Answer]:
    """At most ``top_k`` answers from a reading; None comes first when ``na_prob`` is above the threshold."""
    na_prob = reading.na_prob
    made = [
        Answer(
            context[span.start : span.end],
            sigmoid(logit(reading, span, settings)),
            span.start,
            span.end,
            na_prob,
            document_id,
        )
        for span in reading.spans
    ]
    if na_prob > settings.no_answer_threshold or not made:
        score = sigmoid(-logit(reading, reading.spans[0], settings)) if made else 1.0
        made.insert(0, Answer(None, score, 0, 0, na_prob, document_id))
    return made[:top_k]


def logit(reading: Reading, span: Span, settings: ModelSettings) -> float:
    """Log odds that a span of a reading is right, rather than that there is no answer."""
    return (span.score - reading.null_score - settings.score_shift) / settings.temperature


def ranked(found: Sequence[Sequence[Answer]], threshold: float, top_k: int) -> list[Answer]:
    """The answers to one question from all its contexts, best first.

    Args:
        found: the answers from each context; errors aside, None only where a context has no text.
        threshold: when the smallest ``na_prob`` is above it, a None answer comes first.
        top_k: answers wanted.

    Returns:
        at most ``top_k`` answers, then one with ``error`` for each context that could not be asked;
        never empty.
    """
    good = [answer for made in found for answer in made if answer.error is None]
    spans = sorted((a for a in good if a.answer is not None), key=lambda answer: -answer.score)
    na_prob = min((answer.na_prob for answer in good), default=1.0)
    if good and (na_prob > threshold or not spans):
        spans.insert(0, Answer(None, 1.0 - spans[0].score if spans else 1.0, 0, 0, na_prob))
    return spans[:top_k] + [answer for made in found for answer in made if answer.error is not None]


def with_document(answer: Answer, document_id: str | None) -> Answer:
    """The same answer with its ``document_id`` set."""
    return replace(answer, document_id=document_id)


def refusal(question: Any, context: Any) -> str | None:
    """The reason why a pair cannot be asked of any model; None when it can."""
    if not isinstance(question, str):
        return f"the question is {_kind(question)}, not a text"
    if not question.strip():
        return "the question is empty; ask something"
    if not isinstance(context, str):
        return f"the context is {_kind(context)}, not a text"
    return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
