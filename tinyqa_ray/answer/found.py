"""Answers found in a unit of work, which a later pass ranks with those of other units."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from tinyqa_ray.answer.pairs import Pair
from tinyqa_ray.answer.rows import Row
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.datasets.sentences import sentence_around
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import MOST_SPANS, Answer, held, logit
from tinyqa_ray.reader.evidence import Place
from tinyqa_ray.reader.spans import Reading, Regions, Span, sigmoid

FOUND = pa.schema(
    [
        pa.field("question_row", pa.int64()),
        pa.field("row", pa.int64()),  # of the document
        pa.field("document_id", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("start", pa.int64()),
        pa.field("end", pa.int64()),
        pa.field("na_prob", pa.float64()),
        pa.field("meta", pa.string()),
    ]
)
"""Answers found in a unit, sorted by question; a later pass ranks them with those of other units."""
FOUND_PLACES = pa.schema([*FOUND, pa.field("sentence", pa.string()), pa.field("sentence_start", pa.int64())])
"""The same with the sentence around each, for evidence."""
MOST_PLACES = 1000
"""Most answers to a question that are kept where all are wanted, so that memory is bounded."""


def kept_of_a_document(config: AnswerConfig) -> int:
    """How many answers to a question are kept per document."""
    most = MOST_SPANS if wants_all(config) else int(config.top_k)
    return min(most, config.per_document_k or most)


def wants_all(config: AnswerConfig) -> bool:
    """Whether all spans count that the model holds for an answer, each by itself."""
    return config.evidence or config.top_k == "all"


def best_rows(rows: Iterable[Row], config: AnswerConfig, threshold: float) -> list[Row]:
    """The best answers to one question among rows of ``FOUND``, best first.

    Where all are wanted, a document without a span that is held for an answer has its best one here, which
    only counts if no document has any.
    """
    if not wants_all(config):
        return heapq.nsmallest(int(config.top_k), rows, key=best_first)
    every = list(rows)
    good = [row for row in every if row["na_prob"] <= threshold]
    weak = 1 if config.top_k == "all" else int(config.top_k)
    return heapq.nsmallest(MOST_PLACES, good, key=best_first) or heapq.nsmallest(weak, every, key=best_first)


def found_table(
    read: Sequence[tuple[Pair, Reading]], config: AnswerConfig, settings: ModelSettings
) -> pa.Table:
    """The best answers to each question within a unit: rows of ``FOUND`` by question, then best first.

    Only the best per question are kept: an answer that is not among the best of its unit is not among the
    best of the corpus either.
    """
    found: dict[int, list[Row]] = {}
    for _, same in groupby(read, key=lambda each: (each[0].row, each[0].question_row)):
        for row in _of_one_document(list(same), config, settings):
            found.setdefault(row["question_row"], []).append(row)
    threshold = settings.no_answer_threshold
    rows = [row for question in sorted(found) for row in best_rows(found[question], config, threshold)]
    return pa.Table.from_pylist(rows, schema=FOUND_PLACES if config.evidence else FOUND)


def best_first(row: Row) -> tuple[float, int, int]:
    """Sort key of answers to a question: by score; ties by document, then by place in the document."""
    return -row["score"], row["row"], row["start"]


def _of_one_document(
    group: Sequence[tuple[Pair, Reading]], config: AnswerConfig, settings: ModelSettings
) -> Iterator[Row]:
    """The best answers to one question in all passages of a document, without overlaps and fragments."""
    most, every = kept_of_a_document(config), wants_all(config)
    spans: list[tuple[float, int, int, Span, Pair, Reading]] = []
    for pair, reading in group:
        for rank, span in enumerate(reading.spans):
            if every and rank > 0 and not held(reading, span, settings.no_answer_threshold):
                break
            score = sigmoid(logit(reading, span, settings))
            spans.append((-score, pair.start + span.start, pair.start + span.end, span, pair, reading))
    regions = Regions()
    for negative, start, end, span, pair, reading in sorted(spans, key=lambda each: each[:3]):
        if regions.kept < most and regions.take(start, end, pair.whole):
            around = sentence_around(pair.whole or "", start, end) if config.evidence else (0, 0)
            yield {
                "question_row": pair.question_row,
                "row": pair.row,
                "document_id": pair.document_id,
                "answer": str(pair.text)[span.start : span.end],
                "score": -negative,
                "start": start,
                "end": end,
                "na_prob": reading.na_prob,
                "meta": pair.meta,
                "sentence": str(pair.whole)[slice(*around)],
                "sentence_start": around[0],
            }


def as_answer(row: Row) -> Answer:
    """A row of ``FOUND`` as an answer."""
    names: tuple[Any, ...] = ("answer", "score", "start", "end", "na_prob", "document_id")
    return Answer(*(row[name] for name in names))


def as_place(row: Row) -> Place:
    """A row of ``FOUND_PLACES`` as a place."""
    names = ("document_id", "answer", "score", "start", "end", "sentence", "sentence_start")
    return Place(**{name: row[name] for name in names})
