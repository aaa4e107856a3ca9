"""How right second and later answers are, and the scale that makes their scores say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.evaluate import calibration, squad_metrics
from tinyqa_ray.evaluate.measure import Asked, gold
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import logit
from tinyqa_ray.reader.ranks import chances, log_odds, same_answer
from tinyqa_ray.reader.spans import Reading, sigmoid

Float = NDArray[np.float64]

RANKS = 5
"""Answers of each question that are measured."""
_OWN = 2
"""Ranks after the first with a scale of their own, the last of which counts for all later ones: few of these
are right, too few to fit each."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers to one question, best first, and how right each is."""

    scores: tuple[float, ...]
    """Of each against no answer alone."""
    answers: tuple[str, ...]
    """What each says; equal answers are equal strings."""
    right: tuple[float, ...]
    """F1 of each, in [0, 1]; 0 if the question has no answer."""

    def chances(self, settings: ModelSettings) -> Iterator[tuple[int, float, float]]:
        """Rank from 0, score and rightness of each different answer."""
        scores = chances(self.scores, self.answers, settings)
        seen: set[str] = set()
        for answer, score, right in zip(self.answers, scores, self.right, strict=True):
            if answer not in seen:
                yield len(seen), score, right
                seen.add(answer)


def judged(asked: Sequence[Asked], readings: Sequence[Reading], settings: ModelSettings) -> list[Judged]:
    """What the spans of each question are worth; questions without a span are left out."""
    accepted = gold(asked)
    made = []
    for each, reading in zip(asked, readings, strict=True):
        texts = [each.context[span.start : span.end] for span in reading.spans]
        golds = accepted[each.question.id]
        if texts:
            made.append(
                Judged(
                    tuple(sigmoid(logit(reading, span, settings)) for span in reading.spans),
                    tuple(map(same_answer, texts)),
                    tuple(max((squad_metrics.f1(own, text) for own in golds), default=0.0) for text in texts),
                )
            )
    return made


def fitted(found: Sequence[Judged], settings: ModelSettings) -> ModelSettings:
    """The settings with the scales of second and later answers: Platt scaling, as that of the best answer.

    Args:
        found: answers to questions that are not measured, with the scores of these settings.
        settings: with the scale of the best answer.

    Returns:
        unfitted where there are no second answers.
    """
    plain = replace(settings, rank_temperatures=(), rank_shifts=(), ranks_fitted_on=None)
    odds: list[list[tuple[float, float]]] = [[] for _ in range(_OWN)]
    for each in found:
        for rank, score, right in each.chances(plain):
            if rank > 0 and 0.0 < score < 1.0:
                odds[min(rank, _OWN) - 1].append((log_odds(score), right))
    scales = [calibration.best_scale(*np.array(rows, np.float64).T) for rows in odds if rows]
    return replace(
        plain,
        rank_temperatures=tuple(scale.temperature for scale in scales),
        rank_shifts=tuple(scale.shift for scale in scales),
    )


def errors(found: Sequence[Judged], settings: ModelSettings) -> tuple[float, ...]:
    """Calibration error of the scores of first, second, … answers, in percent; see ``calibration_error``."""
    ranks: dict[int, list[tuple[float, float]]] = {}
    for each in found:
        for rank, score, right in each.chances(settings):
            ranks.setdefault(rank, []).append((score, right))
    return tuple(
        100 * calibration.calibration_error(*np.array(ranks[rank], np.float64).T) for rank in sorted(ranks)
    )
