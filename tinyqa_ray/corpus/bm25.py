"""BM25 over passages, with the statistics of the whole corpus, however it is cut into shards.

Libraries score with the statistics of what they have indexed, which here would be one shard. So
``best_passages`` weighs the counts of each shard itself, for the terms of the questions. As bm25s does (Lù
2024, arXiv 2407.03618), it sums up what each term adds to the scores of the passages that hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tinyqa_ray.corpus.passage_index import Ints, ShardIndex

Scores = npt.NDArray[np.float32]
Ranked = tuple[Ints, Scores]
"""Numbers of passages, counted over all shards from 0, best first, and their scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What BM25 must know about a whole corpus, apart from how many passages hold a term."""

    passages: int
    terms: int
    """Lengths of all passages, summed."""


def best_passages(
    questions: Sequence[Sequence[str]],
    shards: Iterable[ShardIndex],
    corpus: Statistics,
    n: int,
    *,
    k1: float = 1.2,
    b: float = 0.75,
) -> list[Ranked]:
    """For each question, the n passages of a corpus with the best BM25 scores.

    Passage p scores, for question q, in the variant of Lucene ≥ 8 (Kamphuis et al., ECIR 2020):

        sum over terms t of q:  ln(1 + (N - df(t) + 0.5) / (df(t) + 0.5))
                                * tf(t, p) / (k1 * (1 - b + b * length(p) / mean length) + tf(t, p))

    with N passages in all shards, of which df(t) hold t. How a corpus is cut into shards changes nothing.

    Args:
        questions: the terms of each question; a term that occurs twice counts twice.
        shards: the whole corpus, in order; iterated twice.
        corpus: sums over the shards.
        n: most passages per question.
        k1: how much further occurrences of a term still add to the score.
        b: how much a passage's length lowers its score.

    Returns:
        for each question, passages that share a term with it, best first; of equal scores, the earlier first.
    """
    vocabulary = {term: i for i, term in enumerate(dict.fromkeys(term for q in questions for term in q))}
    asked = pa.array(list(vocabulary), pa.string())
    frequency = np.zeros(len(vocabulary), np.int64)
    places: list[Ints] = []
    for shard in shards:
        places.append(shard.find(asked))
        frequency += shard.passages_with(places[-1])
    idf = np.log1p((corpus.passages - frequency + 0.5) / (frequency + 0.5))
    # Rounded, so that processors which differ in the last bit of a logarithm give the same scores.
    idf = idf.astype(np.float32).astype(np.float64)
    mean_length = corpus.terms / max(corpus.passages, 1)
    numbered = [[vocabulary[term] for term in q] for q in questions]
    best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in questions]
    before = 0
    for shard, found in zip(shards, places, strict=True):
        parts = _parts(shard, found, idf, mean_length, k1, b)
        for i, terms in enumerate(numbered):
            scores = np.zeros(len(shard), np.float32)
            for term in terms:
                np.add.at(scores, *parts[term])
            best[i] = _better(best[i], scores, before, n)
        before += len(shard)
    return best


def _parts(
    shard: ShardIndex, found: Ints, idf: npt.NDArray[np.float64], mean_length: float, k1: float, b: float
) -> list[tuple[Ints, Scores]]:
    """For each term, the passages of a shard that hold it, and what it adds to the score of each."""
    sizes = shard.passages_with(found)
    ends = np.cumsum(sizes)
    items = np.repeat(shard.first[found] - (ends - sizes), sizes) + np.arange(sizes.sum())
    passage, count = shard.passage[items], shard.count[items].astype(np.float64)
    norm = k1 * (1 - b + b * shard.length[passage] / mean_length)
    score = (np.repeat(idf, sizes) * count / (norm + count)).astype(np.float32)
    return list(zip(np.split(passage, ends[:-1]), np.split(score, ends[:-1]), strict=True))


def _better(best: Ranked, scores: Scores, before: int, n: int) -> Ranked:
    """The best n passages of ``best`` and of the next shard, whose first passage is number ``before``."""
    numbers, kept = best
    new = np.flatnonzero(scores > (kept[-1] if len(kept) == n else 0))
    if not len(new):
        return best
    if len(new) > n:
        new = new[scores[new] >= np.partition(scores[new], -n)[-n]]
    numbers, kept = np.concatenate([numbers, new + before]), np.concatenate([kept, scores[new]])
    order = np.argsort(-kept, kind="stable")[:n]
    return numbers[order], kept[order]
