"""The chance that each of several answers is right, held against no answer and every better answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tinyqa_ray.datasets.normalised import normalize_answer
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import Answer, TopK, of_text, ranked, with_document
from tinyqa_ray.reader.spans import Reading, sigmoid


def same_answer(text: str) -> str:
    """A key that is equal for equal answers, compared as SQuAD's evaluator compares them."""
    return normalize_answer(text) or text


def rescored(found: Sequence[Answer], settings: ModelSettings) -> list[Answer]:
    """The answers to one question, best first, with scores that say how likely each is right.

    Args:
        found: answers whose scores are held against no answer alone, best first; perhaps a None answer
            before them, and answers with ``error`` after them.
        settings: the model's, with the scale of each rank.

    Returns:
        the same answers, again best first; the first keeps its score.
    """
    spans = [each for each in found if each.answer is not None]
    made = chances(
        [each.score for each in spans], [same_answer(str(each.answer)) for each in spans], settings
    )
    new = [replace(each, score=score) for each, score in zip(spans, made, strict=True)]
    new.sort(key=lambda each: -each.score)
    before = [each for each in found if each.answer is None and each.error is None]
    return [*before, *new, *(each for each in found if each.error is not None)]


def best_of(
    found: Sequence[Reading | str],
    texts: Sequence[str],
    names: Sequence[str | None],
    settings: ModelSettings,
    top_k: TopK,
) -> list[Answer]:
    """The answers to one question, asked of several texts, best first.

    Args:
        found: what was read in each text, or why it could not be asked.
        texts: the texts.
        names: of the texts, as ``document_id``.
        settings: with the threshold: a None answer comes first when ``na_prob`` is above it in every text.
        top_k: answers wanted.
    """
    always = settings if top_k == "all" else replace(settings, no_answer_threshold=1.0)
    named = [
        [with_document(each, name) for each in of_text(reading, text, always, top_k)]
        for reading, text, name in zip(found, texts, names, strict=True)
    ]
    return rescored(ranked(named, settings.no_answer_threshold, top_k), settings)


def chances(scores: Sequence[float], answers: Sequence[str], settings: ModelSettings) -> list[float]:
    """The chance of each answer to a question that it is right.

    An answer can be right if no better one is: its chance against no answer is multiplied by the chances that
    the better answers are wrong (the continuation-ratio model, Fienberg 1980), and the scale fitted for its
    rank corrects the result. Equal answers do not compete. Different answers never add up to more than 1, and
    a better answer is never the less likely one.

    Args:
        scores: of each answer against no answer alone, in [0, 1], falling.
        answers: what each says; equal answers are equal strings.
        settings: the model's, with the scale of each rank.

    Returns:
        chances in [0, 1]; that of the first answer, and of those equal to it, is its score.
    """
    made: list[float] = []
    rivals: dict[str, tuple[int, float]] = {}  # rank of each different answer, and the chance left to it
    left = 1.0  # the chance that all different answers so far are wrong
    free = least = 1.0  # what is not given to better answers yet, and what the last of them was given
    for score, answer in zip(scores, answers, strict=True):
        known = answer in rivals
        rank, share = rivals.setdefault(answer, (len(rivals), left))
        chance = score if rank == 0 else min(scaled(score * share, rank, settings), least)
        if not known:
            chance = min(chance, free)
            left *= 1.0 - score
            free, least = max(free - chance, 0.0), chance
        made.append(chance)
    return made


def scaled(chance: float, rank: int, settings: ModelSettings) -> float:
    """A chance as the scale that was fitted for the answer's rank, from 0 for the best, corrects it."""
    if rank == 0 or not settings.rank_temperatures or not 0.0 < chance < 1.0:
        return chance
    place = min(rank, len(settings.rank_temperatures)) - 1
    odds = log_odds(chance)
    return sigmoid((odds - settings.rank_shifts[place]) / settings.rank_temperatures[place])


def log_odds(chance: float) -> float:
    """The inverse of the logistic function, for a chance in (0, 1)."""
    return math.log(chance) - math.log1p(-chance)
