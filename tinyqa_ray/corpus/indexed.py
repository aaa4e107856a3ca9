"""A corpus that ``tinyqa answer --index`` indexed, asked one question at a time; without Ray."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.local_copies import LocalCopies
from tinyqa_ray.corpus import tables
from tinyqa_ray.corpus.bm25 import Statistics, best_passages
from tinyqa_ray.corpus.candidates import ShardIndexes
from tinyqa_ray.corpus.passage_index import locate
from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.documents import Places

_PLACED = ("pages", "pieces")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A part of a document: its text, where that starts in the document, and where its characters stand."""

    document_id: str
    text: str
    start: int
    places: Places


class IndexedCorpus:
    """The documents and the index in a folder that ``AnswerConfig.index`` named."""

    def __init__(self, folder: str) -> None:
        """Open the folder.

        Raises:
            InputError: it is no finished index, or cannot be read.
        """
        made = stage_folder.require_finished(folder, "index")
        kept = storage.join(folder, "texts")
        kept = kept if storage.kind(kept) == "folder" else storage.join(folder, "documents")
        self.documents = [file for file in storage.list_files(kept) if file.endswith(".parquet")]
        self._starts = [0]
        for file in self.documents:
            with tables.opened(file) as parquet:
                self._starts.append(self._starts[-1] + parquet.metadata.num_rows)
        indexes = storage.list_files(storage.join(folder, "passages"), ".arrow")
        self._shards = ShardIndexes(tuple(sorted(indexes)), LocalCopies())
        sizes = [(len(shard), int(shard.length.sum())) for shard in self._shards]
        self._statistics = Statistics(
            passages=sum(count for count, _ in sizes), terms=sum(terms for _, terms in sizes)
        )
        self._analyzer = Analyzer(made["config"]["language"])

    def best(self, question: str, most: int) -> list[Passage]:
        """The passages with the best BM25 scores for a question, in the order of the corpus."""
        terms = self._analyzer.terms(question)
        ((numbers, _),) = best_passages([terms], self._shards, self._statistics, most)
        found = locate(np.sort(numbers), self._shards).to_pylist()
        return [self._passage(**each) for each in found]

    def _passage(self, row: int, document_id: str, start: int, end: int) -> Passage:
        file = self.documents[bisect_right(self._starts, row) - 1]
        with tables.opened(file) as parquet:
            placed = set(_PLACED) <= set(parquet.schema_arrow.names)
        table = tables.rows_between(file, "row", row, row, ["text", *(_PLACED if placed else ())])
        places = Places.from_arrow(*(table[name][0] for name in _PLACED)) if placed else Places(())
        text = table["text"][0].as_py()[start:end]
        return Passage(document_id=document_id, text=text, start=start, places=places)
