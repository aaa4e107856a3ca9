"""What a Ray Data actor does with a unit of work: the model reads its pairs, answers become rows."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.engine import RunEngine
from tinyqa_ray.answer.first_pass import FirstPass
from tinyqa_ray.answer.notes import Example, Notes
from tinyqa_ray.answer.pairs import Pair, pairs_of
from tinyqa_ray.answer.plan import Unit, unit_of
from tinyqa_ray.answer.rows import Row, chosen, counted, rows_of, write_jsonl
from tinyqa_ray.answer.where import Stand, placed
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.answers import Answer, answers, logit
from tinyqa_ray.reader.spans import Reading, Span, sigmoid

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
_SLOWEST = 5


class Answerer:
    """Answers units; each actor makes one."""

    side_by_side = True

    def __init__(
        self,
        config: AnswerConfig,
        settings: ModelSettings,
        corpus: Corpus,
        output: str,
        notes: str,
        engine: RunEngine | None = None,
        first: FirstPass | None = None,
    ) -> None:
        """Load the model.

        Args:
            config: configuration of the stage.
            settings: threshold and scale of scores; read once, so that all actors of a run use the same.
            corpus: files of documents and questions.
            output: folder for JSON lines.
            notes: folder for notes, from which the page is made.
            engine: what the driver chose for all actors; the model's own when not given.
            first: what a smaller model found, if one has read the pairs first.
        """
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config, self.corpus = config, corpus
        self.output, self.notes = output, notes
        self.first, self.best = first, None if first is None else first.best_margins()
        device = "cuda" if config.num_gpus else "cpu"
        chosen = engine or RunEngine(model=config.model, precision=None)
        self.reader = Reader.from_pretrained(
            chosen.model,
            settings=settings,
            window=config.window,
            device=device,
            precision=chosen.precision,
        )

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Answer a unit: rows of ``ANSWERS``, or of ``FOUND`` if a question has several documents."""
        began = time.perf_counter()
        unit = unit_of(rows)
        pairs = pairs_of(unit, self.corpus)
        counts: dict[str, float] = {}
        if self.first is not None and self.best is not None:
            pairs = self.first.kept(unit, pairs, self.best)
            counts["pairs_read"] = len(pairs)
        read = iter(
            self.reader.read_or_refuse(
                [(pair.question, pair.text) for pair in pairs if not pair.error],
                max_answer_tokens=self.config.max_answer_tokens,
                top_k=kept_of_a_document(self.config),
            )
        )
        # An error found while the input was read has priority: such a pair is not shown to the model.
        found = [(pair, pair.error or next(read)) for pair in pairs]
        good = [(pair, each) for pair, each in found if not isinstance(each, str)]
        examples: list[Example] = []
        if self.corpus.merged:
            table = found_table(good, self.config, self.reader.settings)
        else:
            table, counts, examples = self._answers(unit, found)
        Notes(
            seconds=time.perf_counter() - began,
            slowest=_slowest([pair for pair, _ in good]),
            characters=sum(len(pair.text or "") for pair, _ in good),
            examples=examples,
        ).write(storage.join(self.notes, f"unit-{unit.index:06d}.json"))
        return table, counts

    def _answers(
        self, unit: Unit, found: Sequence[tuple[Pair, Reading | str]]
    ) -> tuple[pa.Table, dict[str, float], list[Example]]:
        """Rows of ``ANSWERS``, each pair on its own, in the order of the pairs.

        Args:
            unit: whose pairs they are.
            found: each pair with its reading, or why it has none.
        """
        made: list[Row] = []
        stand: list[Stand | None] = []
        counts: dict[str, float] = {}
        examples: dict[bool, Example] = {}
        for pair, reading in found:
            key = {"question_id": pair.question_id, "question": pair.question}
            if isinstance(reading, str):
                made.append(
                    {**key, "document_id": pair.document_id, "error": reading, "rank": 0, "meta": pair.meta}
                )
                stand.append(None)
                counts["errors"] = counts.get("errors", 0) + 1
                continue
            text = str(pair.text)
            spans = answers(reading, text, self.reader.settings, self.config.top_k, pair.document_id)
            kept = chosen(spans, self.config)
            counted(kept, counts)
            made += rows_of(key, kept, [pair.meta] * len(kept))
            stand += [None if each.answer is None else (pair.row, each.start, each.end) for each in kept]
            best = spans[0]
            examples.setdefault(best.answer is None, Example.of(str(pair.question), pair.row, best))
        counts["rows"] = len(made)
        schema = placed(made, stand, self.corpus.texts)
        if self.config.jsonl:
            write_jsonl(storage.join(self.output, f"part-{unit.index:06d}.jsonl"), made, schema)
        return pa.Table.from_pylist(made, schema=schema), counts, list(examples.values())


def kept_of_a_document(config: AnswerConfig) -> int:
    """How many answers to a question are kept per document."""
    return min(config.top_k, config.per_document_k or config.top_k)


def found_table(
    read: Sequence[tuple[Pair, Reading]], config: AnswerConfig, settings: ModelSettings
) -> pa.Table:
    """The best answers to each question within a unit: rows of ``FOUND`` by question, then best first.

    At most ``top_k`` per question are kept: an answer that is not among the best of its unit is not among
    the best of the corpus either.
    """
    found: dict[int, list[Row]] = {}
    for _, same in groupby(read, key=lambda each: (each[0].row, each[0].question_row)):
        group = list(same)
        for row in _of_one_document(group, kept_of_a_document(config), settings):
            found.setdefault(row["question_row"], []).append(row)
    kept = (heapq.nsmallest(config.top_k, found[question], key=best_first) for question in sorted(found))
    return pa.Table.from_pylist([row for rows in kept for row in rows], schema=FOUND)


def best_first(row: Row) -> tuple[float, int, int]:
    """Sort key of answers to a question: by score; ties by document, then by place in the document."""
    return -row["score"], row["row"], row["start"]


def _of_one_document(
    group: Sequence[tuple[Pair, Reading]], most: int, settings: ModelSettings
) -> Iterator[Row]:
    """The best answers to one question in all passages of a document; no two of them overlap."""
    spans: list[tuple[float, int, int, Span, Pair, Reading]] = []
    for pair, reading in group:
        for span in reading.spans:
            score = sigmoid(logit(reading, span, settings))
            spans.append((-score, pair.start + span.start, pair.start + span.end, span, pair, reading))
    taken: list[tuple[int, int]] = []
    for negative, start, end, span, pair, reading in sorted(spans, key=lambda each: each[:3]):
        if len(taken) < most and all(end <= first or last <= start for first, last in taken):
            taken.append((start, end))
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
            }


def _slowest(pairs: Sequence[Pair]) -> list[tuple[str, int]]:
    """The documents of which the most characters were read, summed over all questions."""
    read: dict[str, int] = {}
    for pair in pairs:
        read[str(pair.document_id)] = read.get(str(pair.document_id), 0) + len(pair.text or "")
    return heapq.nlargest(_SLOWEST, read.items(), key=lambda item: item[1])


def as_answer(row: Row) -> Answer:
    """A row of ``FOUND`` as an answer."""
    names: tuple[Any, ...] = ("answer", "score", "start", "end", "na_prob", "document_id")
    return Answer(*(row[name] for name in names))
