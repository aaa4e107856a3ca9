"""Equal answers from several places as one answer with its evidence: where it stands, how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tinyqa_ray.datasets.sentences import sentence_around
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import Answer, answers
from tinyqa_ray.reader.ranks import same_answer
from tinyqa_ray.reader.spans import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a text says an answer: ``text[start:end] == answer``, in Python characters."""

    document_id: str | None
    answer: str
    """As it stands here; places of one answer may differ in case, punctuation and articles."""
    score: float
    """The chance that it is right, by this place alone, against no answer: as ``Answer.score`` of a best
    answer."""
    start: int
    end: int
    sentence: str
    """The sentence around it, ``text[sentence_start : sentence_start + len(sentence)]``."""
    sentence_start: int
    page: int | None = None
    """From 1; None if the text has no pages, or is no file."""

    @classmethod
    def of(cls, answer: Answer, text: str, *, start: int = 0, page: int | None = None) -> Place:
        """The place of an answer.

        Args:
            answer: an answer, not None; its offsets count from character ``start`` of ``text``.
            text: the document.
            start: where the part of the document begins that was read.
            page: see above.
        """
        assert answer.answer is not None
        first, last = answer.start + start, answer.end + start
        begin, until = sentence_around(text, first, last)
        return cls(
            document_id=answer.document_id,
            answer=answer.answer,
            score=answer.score,
            start=first,
            end=last,
            sentence=text[begin:until],
            sentence_start=begin,
            page=page,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """An answer with every place that says it, or ``answer=None`` when no text holds one."""

    answer: str | None
    """As it stands in the best place."""
    score: float
    """The chance that it is right, by all its places together and against all other answers; for a None
    answer the chance of no answer."""
    places: tuple[Place, ...]
    """Best first; empty for a None answer."""
    na_prob: float
    """The smallest ``na_prob`` of all texts, which is compared with the threshold."""
    document_id: str | None = None
    """Of the best place, or of the text that could not be asked."""
    error: str | None = None
    """Why a text could not be asked."""


def gathered_from(
    found: Sequence[Reading | str],
    texts: Sequence[str],
    names: Sequence[str | None],
    settings: ModelSettings,
    *,
    top_k: int | None = None,
    min_score: float = 0.0,
) -> list[Evidence]:
    """The answers to one question, asked of several texts, with their places.

    For the arguments see ``ranks.best_of``.

    Returns:
        different answers, best first, at least one; after them one with ``error`` for each text that could
        not be asked.
    """
    places: list[Place] = []
    weak: list[Place] = []  # the best span of each text that holds no answer
    refusals: list[Evidence] = []
    na_prob = 1.0
    for reading, text, name in zip(found, texts, names, strict=True):
        if isinstance(reading, str):
            error = Evidence(answer=None, score=0.0, places=(), na_prob=1.0, document_id=name, error=reading)
            refusals.append(error)
            continue
        na_prob = min(na_prob, reading.na_prob)
        here, best = places_of(reading, text, name, settings)
        places += here
        weak += best
    made = gathered(places or weak, na_prob=na_prob, settings=settings, top_k=top_k, min_score=min_score)
    return [*made, *refusals]


def places_of(
    reading: Reading, text: str, name: str | None, settings: ModelSettings
) -> tuple[list[Place], list[Place]]:
    """The places of a text that the model holds for an answer; where there are none, its best one apart."""
    found = answers(reading, text, settings, "all", name)
    if found[0].answer is not None:
        return [Place.of(each, text) for each in found], []
    always = replace(settings, no_answer_threshold=1.0)
    best = answers(reading, text, always, 1, name)
    return [], [Place.of(each, text) for each in best if each.answer is not None]


def gathered(
    places: Iterable[Place],
    *,
    na_prob: float,
    settings: ModelSettings,
    top_k: int | None = None,
    min_score: float = 0.0,
) -> list[Evidence]:
    """Answers from places, best first: places whose answers are equal for SQuAD's evaluator are one answer.

    Args:
        places: those at which the model holds a span for an answer; where there is none, the best span of
            each text.
        na_prob: the smallest of all texts.
        settings: with the threshold: a None answer comes first when ``na_prob`` is above it.
        top_k: most answers; all when not given.
        min_score: answers with a lower score are left out.

    Returns:
        at least one answer; a None answer if all others are left out.
    """
    same: dict[str, list[Place]] = {}
    ordered = sorted(places, key=lambda each: -each.score)  # stable: of equal ones the earlier comes first
    for place in ordered:
        same.setdefault(same_answer(place.answer), []).append(place)
    scores = shares([[each.score for each in group] for group in same.values()])
    made = [
        Evidence(
            answer=group[0].answer,
            score=score,
            places=tuple(group),
            na_prob=na_prob,
            document_id=group[0].document_id,
        )
        for score, group in zip(scores, same.values(), strict=True)
    ]
    made.sort(key=lambda each: -each.score)
    kept = [each for each in made if each.score >= min_score]
    if na_prob > settings.no_answer_threshold or not kept:
        none = max(1.0 - math.fsum(scores), 0.0)
        kept.insert(0, Evidence(answer=None, score=none, places=(), na_prob=na_prob))
    return kept[:top_k]


def shares(groups: Sequence[Sequence[float]]) -> list[float]:
    """The chance of each different answer that it is right: its share of the odds of all, and of no answer.

    The odds of an answer are the root of the sum of the squares of its places' odds against no answer: more
    than those of its best place, but less than if its places were independent, since a model that is wrong
    at one place is often wrong in the same way at another. ``benchmarks/evidence.py`` compares the rules.

    Args:
        groups: for each answer, the scores of its places, in [0, 1].

    Returns:
        chances in [0, 1], which add up to at most 1. That of a single answer at a single place is its score.
    """
    if len(groups) == 1 and len(groups[0]) == 1:
        return [groups[0][0]]  # without rounding
    odds = [math.hypot(*(_odds(score) for score in group)) for group in groups]
    total = 1.0 + math.fsum(odds)
    return [each / total for each in odds]


def _odds(score: float) -> float:
    return score / max(1.0 - score, _LEAST)


_LEAST = 2.0**-53
"""Stands for the chance of being wrong of an answer that cannot be."""
