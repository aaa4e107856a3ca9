"""The passages of a shard of documents and the terms in each, in one Arrow file.

The file holds counts, not scores: how rare a term is, and how long passages are on average, is known only
when all shards are indexed. So the index of a shard depends on its documents alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from tinyqa_ray.corpus.terms import Analyzer

Ints = npt.NDArray[np.int64]

INDEX = pa.schema(
    [
        # One item per passage, in the order of the documents:
        pa.field("row", pa.large_list(pa.int64())),
        pa.field("document_id", pa.large_list(pa.string())),
        pa.field("start", pa.large_list(pa.int64())),  # in characters of the document
        pa.field("end", pa.large_list(pa.int64())),
        pa.field("length", pa.large_list(pa.int32())),  # in terms, without stop words
        # One item per term, in the order of first appearance, and one more in ``first``:
        pa.field("term", pa.large_list(pa.string())),
        pa.field("first", pa.large_list(pa.int64())),  # where the term's items begin in the next two columns
        # One item per pair of a term and a passage that holds it:
        pa.field("passage", pa.large_list(pa.int32())),  # its number within the shard
        pa.field("count", pa.large_list(pa.uint16())),
    ]
)
"""The index of a shard: a table of one row."""
_PLACES = pa.schema([(field.name, field.type.value_type) for field in list(INDEX)[:4]])


def make_index(documents: pa.Table, analyzer: Analyzer, passage_words: int, passage_overlap: int) -> pa.Table:
    """Cut documents into passages and count their terms.

    Args:
        documents: columns ``row``, ``document_id``, ``text``; a document whose text is null has no passages.
        analyzer: makes the terms.
        passage_words: words per passage, with stop words; a document of at most that many is one passage.
        passage_overlap: fewest words that neighbouring passages share.

    Returns:
        a table of schema ``INDEX``.
    """
    numbers = _Numbers(analyzer)
    sources, spans, lengths = [], [], []
    words: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    for source, value in enumerate(documents["text"]):
        text = value.as_py()
        if text is None:
            continue
        found = np.fromiter(map(numbers.__getitem__, analyzer.words(text)), np.int32)
        cuts = _passages(text, len(found), analyzer, passage_words, passage_overlap)
        for first, last, start, end in cuts:
            sources.append(source)
            spans.append((start, end))
            lengths.append(last - first)
            words.append(found[first:last])
    term = np.concatenate(words)
    passage = np.repeat(np.arange(len(spans)), lengths)[term >= 0]
    term = term[term >= 0]
    # Sorted by term, then by passage.
    pairs, count = np.unique(term * np.int64(len(spans)) + passage, return_counts=True)
    terms, passages = np.divmod(pairs, max(len(spans), 1))
    places = np.array(spans, np.int64).reshape(-1, 2)
    took = documents.select(["row", "document_id"]).take(pa.array(sources, pa.int64())).combine_chunks()
    columns = [
        took["row"],
        took["document_id"],
        places[:, 0],
        places[:, 1],
        np.bincount(passage, minlength=len(spans)),
        list(numbers.terms),
        np.searchsorted(terms, np.arange(len(numbers.terms) + 1)),
        passages,
        count,
    ]
    return pa.table([_one_row(*pair) for pair in zip(columns, INDEX.types, strict=True)], schema=INDEX)


class _Numbers(dict[str, int]):
    """Word → number of its term, -1 for a stop word; terms are numbered in the order of appearance."""

    def __init__(self, analyzer: Analyzer) -> None:
        self.analyzer = analyzer
        self.terms: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        term = self.analyzer.term(word)
        self[word] = number = -1 if term is None else self.terms.setdefault(term, len(self.terms))
        return number


def _passages(
    text: str, words: int, analyzer: Analyzer, size: int, overlap: int
) -> Iterator[tuple[int, int, int, int]]:
    """First and last word (exclusive), and first and last character (exclusive), of each passage."""
    if words <= size:
        yield 0, words, 0, len(text)
        return
    starts = np.fromiter(analyzer.starts(text), np.int64, count=words)
    for regular in range(0, words - overlap, size - overlap):
        first = min(regular, words - size)  # the last passage has full size, too
        last = first + size
        start = int(starts[first]) if first else 0
        end = int(starts[last]) if last < words else len(text)
        yield first, last, start, end


def _one_row(values: Any, type_: pa.DataType) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    items = pa.array(values, type_.value_type)
    return pa.LargeListArray.from_arrays(pa.array([0, len(items)], pa.int64()), items)


class ShardIndex:
    """The index of a shard, as stored in its file."""

    def __init__(self, table: pa.Table) -> None:
        columns = {name: table[name].chunk(0).flatten() for name in INDEX.names}
        self.places = pa.table([columns[name] for name in _PLACES.names], schema=_PLACES)
        self.terms = columns["term"]
        self.length, self.first, self.passage, self.count = (
            columns[name].to_numpy(zero_copy_only=True) for name in ("length", "first", "passage", "count")
        )

    @classmethod
    def read(cls, file: str) -> ShardIndex:
        """Map the index in a local file into memory."""
        with pa.memory_map(file) as source:
            return cls(pa.ipc.open_stream(source).read_all())

    def __len__(self) -> int:
        return len(self.length)

    def find(self, terms: pa.Array) -> Ints:
        """Position of each term in this shard's list of terms; -1 if it is not there."""
        found: Ints = pc.index_in(terms, value_set=self.terms).fill_null(-1).to_numpy().astype(np.int64)
        return found

    def passages_with(self, found: Ints) -> Ints:
        """How many passages hold each term that was found, 0 for others."""
        return np.where(found >= 0, self.first[found + 1] - self.first[found], 0)


def locate(numbers: Ints, shards: Iterable[ShardIndex]) -> pa.Table:
    """Columns ``row``, ``document_id``, ``start``, ``end`` of the passages of these ascending numbers."""
    pieces = [_PLACES.empty_table()]
    before = 0
    for shard in shards:
        low, high = np.searchsorted(numbers, [before, before + len(shard)])
        pieces.append(shard.places.take(pa.array(numbers[low:high] - before)))
        before += len(shard)
    return pa.concat_tables(pieces).combine_chunks()
