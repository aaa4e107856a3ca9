"""Asks a reader the questions of SQuAD data, and keeps what it reads, predicts and scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.evaluate import squad_metrics
from tinyqa_ray.reader.reader import Reader
from tinyqa_ray.reader.spans import Reading

_CHUNK = 128


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with the passage it is asked of."""

    question: squad.Question
    context: str
    accepted: tuple[str, ...] | None = None
    """Answers that count as right, where they are not those of the question."""


def questions_of(data: str) -> list[Asked]:
    """All labelled questions of the original paragraphs; copies are for training only.

    Raises:
        InputError: the data cannot be read, or holds no such question.
    """
    return labelled(squad.read_squad(data), data)


def labelled(
    paragraphs: Sequence[squad.Paragraph], data: str, accepted: Mapping[str, Sequence[str]] | None = None
) -> list[Asked]:
    """The labelled questions of paragraphs; for ``accepted``, by question id, see ``Asked``.

    Raises:
        InputError: ``data``, as the paragraphs are called, holds no such question.
    """
    others = accepted or {}
    asked = [
        Asked(question, paragraph.context, tuple(others[question.id]) if question.id in others else None)
        for paragraph in paragraphs
        if paragraph.copy == 0
        for question in paragraph.questions
        if not question.unlabelled
    ]
    if not asked:
        raise InputError(f"{data}: holds no questions that are answered or said to be unanswerable")
    return asked


def read(
    reader: Reader,
    asked: Sequence[Asked],
    max_answer_tokens: int,
    progress: stage_folder.Progress | None = None,
    *,
    top_k: int = 1,
) -> tuple[list[Reading], float]:
    """Readings of all questions, of ``top_k`` spans each, and the seconds they took."""
    began = time.perf_counter()
    readings: list[Reading] = []
    for start in range(0, len(asked), _CHUNK):
        chunk = [(each.question.question, each.context) for each in asked[start : start + _CHUNK]]
        readings += reader.read(chunk, max_answer_tokens=max_answer_tokens, top_k=top_k)
        if progress:
            progress(len(readings), len(asked))
    return readings, time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Scored:
    """Questions that were read, the predictions, and how right each best span is."""

    asked: Sequence[Asked]
    readings: Sequence[Reading]
    predictions: dict[str, str]
    """Text of the best span by question id, empty where there is none."""
    na_probs: dict[str, float]
    """Probability of no answer by question id."""
    per_question: squad_metrics.PerQuestion

    @classmethod
    def of(cls, asked: Sequence[Asked], readings: Sequence[Reading]) -> Scored:
        """Score the best span of every question, once for all figures."""
        predictions, na_probs = {}, {}
        for each, reading in zip(asked, readings, strict=True):
            best = reading.spans[0] if reading.spans else None
            predictions[each.question.id] = each.context[best.start : best.end] if best else ""
            na_probs[each.question.id] = reading.na_prob
        scored = squad_metrics.per_question(gold(asked), predictions)
        return cls(asked, readings, predictions, na_probs, scored)

    def summary(self, threshold: float) -> squad_metrics.SquadSummary:
        """The metrics of the readings at a threshold."""
        return squad_metrics.summarize(self.per_question, self.na_probs, threshold)

    def margins(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How sure the best spans are, and how right.

        Returns:
            ``span - null`` of each question's best span, and its F1 in [0, 1], 0 where there is no answer;
            ``(n,)`` each, for the n questions for which a span was found.
        """
        # 0 where there is no answer: no span is right there, though the metrics give an empty prediction 1.
        f1 = np.where(self.per_question.has_answer, self.per_question.f1, 0.0)
        found = np.array([bool(reading.spans) for reading in self.readings])
        each = [r.spans[0].score - r.null_score if r.spans else 0.0 for r in self.readings]
        return np.array(each, dtype=np.float64)[found], f1[found]


def gold(asked: Sequence[Asked]) -> dict[str, list[str]]:
    """Acceptable answers by question id."""
    return {
        each.question.id: [answer.text for answer in each.question.answers]
        if each.accepted is None
        else list(each.accepted)
        for each in asked
    }


def spread(asked: Sequence[Asked], most: int) -> list[Asked]:
    """At most so many questions, spread evenly over the data and in its order."""
    places = np.linspace(0, max(len(asked) - 1, 0), min(most, len(asked))).astype(int)
    return [asked[place] for place in np.unique(places)]
