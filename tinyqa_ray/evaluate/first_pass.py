"""How much a first pass may leave out: fitted on questions with answers, asked of similar texts.

Questions without an answer are left out: the less is read of a corpus, the fewer of them are answered
wrongly, so that their F1 would hide the answers that are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core import stage_folder
from tinyqa_ray.corpus.bm25 import best_passages
from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.corpus.texts import index_of
from tinyqa_ray.evaluate import squad_metrics
from tinyqa_ray.evaluate.measure import Asked, gold, spread
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.cascade import FirstReader, margins
from tinyqa_ray.reader.spans import Reading

Float = NDArray[np.float64]

_TOGETHER = 512
"""Pairs that each model reads in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """What both models make of P pairs, and what an answer from each would be worth."""

    question: NDArray[np.int64]
    """Number of each pair's question, ascending from 0, ``(P,)``."""
    first: Float
    """Margin of the smaller model, ``(P,)``; see ``reader.cascade.margins``."""
    second: Float
    """Margin of the larger model, ``(P,)``."""
    f1: Float
    """F1 of the larger model's best span in that text against the question's answers, in [0, 1], ``(P,)``."""
    questions: int
    """How many questions there are; one for which BM25 finds no text has no pair."""
    threshold: float
    """A question counts as unanswered if ``sigmoid(-margin)`` of its best pair is above it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What each choice costs, from keeping the best pair alone to keeping all; ``(n,)`` each."""

    keep: Float
    """How far below the best of a question, ascending."""
    share: Float
    """Share of the pairs that is kept, in (0, 1]."""
    f1: Float
    """F1 over the questions, all of which have an answer, in percent."""

    def at(self, keep: float) -> int:
        """The place of a choice."""
        return int(np.searchsorted(self.keep, keep, side="right")) - 1

    def within(self, loss_percent: float) -> int:
        """The first place from which on F1 never falls by more than ``loss_percent`` of that of all pairs."""
        least = self.f1[-1] * (1 - loss_percent / 100)
        below = np.flatnonzero(self.f1 < least - 1e-9)
        return int(below[-1]) + 1 if len(below) else 0


def curve(tried: Tried) -> Curve:
    """The share of pairs kept, and the F1 of the cascade, for every choice that differs."""
    questions = tried.questions
    first = np.where(np.isnan(tried.first), np.inf, tried.first)
    best = np.full(questions, -np.inf)
    np.maximum.at(best, tried.question, np.where(np.isinf(first), -np.inf, first))
    with np.errstate(invalid="ignore"):
        gap = np.maximum(best[tried.question] - first, 0.0)
    gap = np.where(np.isnan(gap), 0.0, gap)  # none of the texts has a span
    order = np.lexsort((tried.question, gap))
    levels, starts = np.unique(gap[order], return_index=True)
    top = np.full(questions, -np.inf)  # of the larger model, so far
    worth = np.zeros(questions)
    lowest = -_logit(tried.threshold)
    f1 = np.empty(len(levels))
    for number, pairs in enumerate(np.split(order, starts[1:])):
        for pair in pairs:
            question = tried.question[pair]
            if tried.second[pair] > top[question]:
                top[question] = tried.second[pair]
                worth[question] = tried.f1[pair] if tried.second[pair] >= lowest else 0.0
        f1[number] = 100 * worth.mean()
    counts = np.append(starts[1:], len(order))
    finite = np.isfinite(levels)  # a text without a span is never worth its reading
    return Curve(keep=levels[finite], share=counts[finite] / len(order), f1=f1[finite])


def _logit(share: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(share) - np.log1p(-share))


@dataclass(frozen=True, slots=True)
class Pair:
    """A question, by its number among those chosen, and one of the texts that BM25 finds for it."""

    number: int
    question: str
    text: str


def pairs_of(chosen: Sequence[Asked], texts: Sequence[str], candidates: int) -> list[Pair]:
    """For each question, the texts with the best BM25 scores, at most ``candidates``; questions in order."""
    different = list(dict.fromkeys(texts))
    analyzer = Analyzer("english")
    index, statistics = index_of(different, analyzer)
    terms = [analyzer.terms(each.question.question) for each in chosen]
    ranked = best_passages(terms, [index], statistics, candidates)
    return [
        Pair(number, each.question.question, different[place])
        for number, (each, (places, _)) in enumerate(zip(chosen, ranked, strict=True))
        for place in places
    ]


def tried(
    first: FirstReader,
    second: Reader,
    asked: Sequence[Asked],
    *,
    questions: int,
    candidates: int,
    max_answer_tokens: int,
    progress: stage_folder.Progress | None = None,
) -> Tried:
    """Have both models read, for questions spread over the data, the texts that BM25 finds for each.

    Args:
        first: the smaller model.
        second: the larger model, whose threshold decides what is answered.
        asked: all questions; their contexts are the texts.
        questions: most questions to take.
        candidates: most texts of a question.
        max_answer_tokens: longest answer, in tokens.
        progress: called with pairs read.
    """
    chosen = spread([each for each in asked if each.question.answers], questions)
    pairs = pairs_of(chosen, [each.context for each in asked], candidates)
    found: list[Float] = []
    readings: list[Reading] = []
    for at in range(0, len(pairs), _TOGETHER):
        some = [(pair.question, pair.text) for pair in pairs[at : at + _TOGETHER]]
        found.append(first.margins(some, max_answer_tokens=max_answer_tokens))
        readings += second.read(some, max_answer_tokens=max_answer_tokens)
        if progress:
            progress(len(readings), len(pairs), note="first pass")
    threshold = second.settings.no_answer_threshold
    return judged(chosen, pairs, np.concatenate(found), readings, threshold=threshold)


def judged(
    chosen: Sequence[Asked],
    pairs: Sequence[Pair],
    first: Float,
    second: Sequence[Reading],
    *,
    threshold: float,
) -> Tried:
    """What the first pass's margins and the larger model's readings of pairs are worth; see ``Tried``."""
    accepted = gold(chosen)
    f1 = [
        max(squad_metrics.f1(answer, pair.text[spans[0].start : spans[0].end]) for answer in golds)
        if (spans := reading.spans) and (golds := accepted[chosen[pair.number].question.id])
        else 0.0
        for pair, reading in zip(pairs, second, strict=True)
    ]
    return Tried(
        question=np.array([pair.number for pair in pairs], np.int64),
        first=first,
        second=margins(second),
        f1=np.array(f1, np.float64),
        questions=len(chosen),
        threshold=threshold,
    )
