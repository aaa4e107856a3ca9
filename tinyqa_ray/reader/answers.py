"""Readings → answers: scores, the no-answer threshold, refusals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.spans import Reading, Span, sigmoid

TopK = int | Literal["all"]
"""How many answers are wanted; ``all`` are those that the model holds for an answer, each by itself: their
``sigmoid(null - span)`` is not above the no-answer threshold."""
MOST_SPANS = 100
"""Most spans of a text that are read for ``all``."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or ``answer=None`` when the context holds none.

    ``context[start:end] == answer`` in Python characters. ``score`` is the chance that the answer is
    right. For the best one it is ``sigmoid((span - null - s) / T)``, with the model's shift s and temperature
    T: its chance against no answer. Further ones are held against the better ones, too, see
    ``ranks.chances``. For a None answer it is the chance of no answer. ``na_prob`` is the official
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
    reading: Reading, context: str, settings: ModelSettings, top_k: TopK, document_id: str | None = None
) -> list[Answer]:
    """At most ``top_k`` answers from a reading; None comes first when ``na_prob`` is above the threshold.

    Each score is held against no answer alone; ``ranks.rescored`` makes chances of them.
    """
    na_prob = reading.na_prob
    spans = reading.spans
    if top_k == "all":
        spans = tuple(each for each in spans if held(reading, each, settings.no_answer_threshold))
    made = [
        Answer(
            context[span.start : span.end],
            sigmoid(logit(reading, span, settings)),
            span.start,
            span.end,
            na_prob,
            document_id,
        )
        for span in spans
    ]
    if na_prob > settings.no_answer_threshold or not made:
        score = sigmoid(-logit(reading, reading.spans[0], settings)) if reading.spans else 1.0
        made.insert(0, Answer(None, score, 0, 0, na_prob, document_id))
    return first_of(made, top_k)


def of_text(found: Reading | str, context: str, settings: ModelSettings, top_k: TopK) -> list[Answer]:
    """The answers from a reading, or the refusal that takes its place."""
    return [refused(found)] if isinstance(found, str) else answers(found, context, settings, top_k)


def held(reading: Reading, span: Span, threshold: float) -> bool:
    """Whether a span alone would be an answer at a threshold of the no-answer probability."""
    return sigmoid(reading.null_score - span.score) <= threshold


def spans_read(top_k: TopK) -> int:
    """How many spans of each text must be read for ``top_k`` answers."""
    return MOST_SPANS if top_k == "all" else top_k


def least_margin(top_k: TopK, threshold: float) -> float:
    """A bound, a little too low, on ``span - null`` of the spans that are read for ``top_k`` answers."""
    if top_k != "all" or threshold >= 1.0:
        return -math.inf
    return math.log1p(-threshold) - math.log(threshold) - 1e-3 if threshold > 0.0 else math.inf


def first_of(found: list[Answer], top_k: TopK) -> list[Answer]:
    """The first ``top_k`` of some answers, or all."""
    return found if top_k == "all" else found[:top_k]


def at_least(found: Sequence[Answer], min_score: float) -> list[Answer]:
    """The answers to a question that score at least so much; a None answer if that leaves none of them."""
    good = [each for each in found if each.answer is None or each.score >= min_score]
    if not good:
        best = found[0]
        good = [Answer(None, 1.0 - best.score, 0, 0, best.na_prob, best.document_id)]
    return good


def logit(reading: Reading, span: Span, settings: ModelSettings) -> float:
    """Log odds that a span of a reading is right, rather than that there is no answer."""
    return (span.score - reading.null_score - settings.score_shift) / settings.temperature


def ranked(found: Sequence[Sequence[Answer]], threshold: float, top_k: TopK) -> list[Answer]:
    """The answers to one question from all its contexts, best first; for their scores see ``answers``.

    Args:
        found: the answers from each context; errors aside, None only where a context has no text or,
            for ``all``, no span that is held for an answer.
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
        none = 1.0 - spans[0].score if spans else min(answer.score for answer in good)
        spans.insert(0, Answer(None, none, 0, 0, na_prob))
    return first_of(spans, top_k) + [answer for made in found for answer in made if answer.error is not None]


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
