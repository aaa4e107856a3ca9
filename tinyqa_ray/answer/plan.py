"""A corpus cut into units of work: a range of documents and a range of questions, of bounded size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.corpus import tables

Ints = npt.NDArray[np.int64]
PerDocument = npt.NDArray[np.int32]
"""Of a corpus of many millions of documents, there is one such array for each thing to know."""

MOST_BYTES = 1 << 24
"""Most bytes of text in a unit; a longer document is a unit of its own."""
_BATCH = 1 << 16


@dataclass(frozen=True, slots=True)
class Unit:
    """The pairs to ask within a range of documents and a range of questions; both ends are included."""

    index: int
    file: str
    """File of the documents; empty if the questions have no document (row -1)."""
    first_row: int
    last_row: int
    first_question: int
    last_question: int
    pairs: int
    size: int
    """Bytes of each text times how often it is read, summed: a rough measure of the cost."""

    @classmethod
    def table(cls, units: list[Unit]) -> pa.Table:
        """Units as the rows of a table."""
        types = [pa.string() if field.type == "str" else pa.int64() for field in fields(cls)]
        schema = pa.schema(list(zip((field.name for field in fields(cls)), types, strict=True)))
        return pa.Table.from_pylist([asdict(unit) for unit in units], schema=schema)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All units, sorted by document, then question, and the number of documents."""

    units: list[Unit]
    documents: int
    unreadable: int
    """Documents without a text that can be read."""
    last_rows: tuple[int, ...]
    """The last row of each file of documents."""


def plan(corpus: Corpus, most_pairs: int, most_bytes: int = MOST_BYTES) -> Plan:
    """Cut a corpus into units of at most ``most_pairs`` pairs; the cuts depend on its rows alone.

    This takes 9 bytes of memory per document, and twice that for a moment. All pairs of one question and one
    document are in one unit.
    """
    sizes, bad, ends = _documents(corpus.documents)
    every = corpus.question_rows
    if corpus.asked:
        pairs, nowhere = _asked(corpus.asked, len(sizes))
        block = every
    else:
        # A square of questions and documents: a unit writes few answers, only the best to each question.
        block = min(every, max(1, math.isqrt(most_pairs)))
        pairs, nowhere = np.where(bad, 0, block).astype(np.int32), 0
    cuts: list[tuple[str, int, int, int, int, int, int]] = []
    if nowhere and not corpus.merged:
        for first, last, count in _question_cuts(corpus, -1, most_pairs):
            cuts.append(("", -1, -1, first, last, count, 0))
    before = 0
    for file, end in zip(corpus.documents, ends.tolist(), strict=True):
        for first, last in _ranges(pairs, sizes, before, end, most_pairs, most_bytes):
            asked = pairs[first : last + 1].astype(np.int64)
            count, size = int(asked.sum()), int(asked @ sizes[first : last + 1])
            if corpus.asked and count > most_pairs and first == last:
                for one, other, part in _question_cuts(corpus, first, most_pairs):
                    cuts.append((file, first, last, one, other, part, int(sizes[first]) * part))
            elif corpus.asked and count:
                cuts.append((file, first, last, 0, every - 1, count, size))
            elif count:
                for question in range(0, every, block):
                    until = min(question + block, every)
                    part = count // block * (until - question)
                    cuts.append((file, first, last, question, until - 1, part, size))
        before = end
    units = [Unit(index, *cut) for index, cut in enumerate(cuts)]
    return Plan(
        units=units,
        documents=len(sizes),
        unreadable=int(bad.sum()),
        last_rows=tuple(int(end) - 1 for end in ends),
    )


def _documents(files: tuple[str, ...]) -> tuple[PerDocument, npt.NDArray[np.bool_], Ints]:
    """Bytes of each document (mean of its row group), whether it is unreadable, and where each file ends."""
    sizes: list[PerDocument] = [np.empty(0, np.int32)]
    bad: list[npt.NDArray[np.bool_]] = [np.empty(0, bool)]
    ends, count = [], 0
    for file in files:
        with tables.opened(file) as parquet:
            text = parquet.schema_arrow.get_field_index("text")
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                mean = group.column(text).total_uncompressed_size // max(group.num_rows, 1)
                sizes.append(np.full(group.num_rows, min(mean, np.iinfo(np.int32).max), np.int32))
                count += group.num_rows
            bad += [
                batch.column(0).is_valid().to_numpy(zero_copy_only=False)
                for batch in parquet.iter_batches(_BATCH, columns=["error"])
            ]
        ends.append(count)
    return np.concatenate(sizes), np.concatenate(bad), np.array(ends, np.int64)


def _asked(files: tuple[str, ...], documents: int) -> tuple[PerDocument, int]:
    """How many pairs each document has, and how many questions have no document."""
    pairs = np.zeros(documents, np.int32)
    nowhere = 0
    for batch in tables.batches(files, ["row"], _BATCH):
        rows, counts = np.unique(batch.column(0).to_numpy(), return_counts=True)
        pairs[rows[rows >= 0]] += counts[rows >= 0]
        nowhere += int(counts[rows < 0].sum())
    return pairs, nowhere


def _ranges(
    pairs: PerDocument, sizes: PerDocument, first: int, end: int, most_pairs: int, most_bytes: int
) -> Iterator[tuple[int, int]]:
    """Ranges of documents, both ends included, within both limits unless a range is a single document."""
    asked = first + np.flatnonzero(pairs[first:end])
    total_pairs, total_bytes = np.cumsum(pairs[asked]), np.cumsum(sizes[asked])
    at = 0
    while at < len(asked):
        before = (total_pairs[at - 1], total_bytes[at - 1]) if at else (0, 0)
        until = min(
            int(np.searchsorted(total_pairs, before[0] + most_pairs, side="right")),
            int(np.searchsorted(total_bytes, before[1] + most_bytes, side="right")),
        )
        until = max(until, at + 1)
        yield int(asked[at]), int(asked[until - 1])
        at = until


def _question_cuts(corpus: Corpus, row: int, most_pairs: int) -> Iterator[tuple[int, int, int]]:
    """Cut the questions of one document into parts: first and last question (included), number of pairs."""
    found = [
        tables.rows_between(file, "row", row, row, ["question_row"])["question_row"].to_numpy()
        for file in corpus.asked
    ]
    questions, counts = np.unique(np.concatenate(found), return_counts=True)
    total = np.cumsum(counts)
    at = 0
    while at < len(questions):
        before = int(total[at - 1]) if at else 0
        until = max(at + 1, int(np.searchsorted(total, before + most_pairs, side="right")))
        yield int(questions[at]), int(questions[until - 1]), int(total[until - 1]) - before
        at = until


def unit_of(row: pa.Table) -> Unit:
    """The unit in a table of one row."""
    (values,) = row.to_pylist()
    return Unit(**values)
