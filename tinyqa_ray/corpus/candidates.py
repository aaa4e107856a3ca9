"""BM25 over a corpus: an index of its passages, and the best passages for each question.

``build_index`` is a pass of ``core.shards`` over the documents, ``select`` one over the questions, so both
continue after an interruption. ``select`` writes the columns that routing writes for questions that name
their document, and the place of the passage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tinyqa_ray.configs import CandidateConfig
from tinyqa_ray.core import shards, storage
from tinyqa_ray.core.local_copies import LocalCopies
from tinyqa_ray.corpus.bm25 import Scores, Statistics, best_passages
from tinyqa_ray.corpus.passage_index import ShardIndex, locate, make_index
from tinyqa_ray.corpus.tables import ASKED
from tinyqa_ray.corpus.terms import Analyzer

CANDIDATES = pa.schema(
    [
        *ASKED,
        pa.field("start", pa.int64()),  # the passage within the document, in characters
        pa.field("end", pa.int64()),
        pa.field("bm25", pa.float32()),
    ]
)
"""A question and a passage to ask it of. A question without a passage has one row: ``row`` is -1, the columns
of document and passage are null, and ``error`` is that of the question, if it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The index of a corpus; each file is the index of one shard."""

    files: tuple[str, ...]
    documents: int
    """Documents that have a text."""
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class ShardIndexes:
    """The shards of an index, in order; can be iterated repeatedly. Files behind a URL are copied first."""

    files: tuple[str, ...]
    copies: LocalCopies

    def __iter__(self) -> Iterator[ShardIndex]:
        for file in self.files:
            yield ShardIndex.read(self.copies.path(file))


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What was selected: ``questions`` = those with passages + ``unmatched`` + ``errors``."""

    files: tuple[str, ...]
    """Parquet files of schema ``CANDIDATES``, each sorted by ``row``, then ``question_row``, ``start``."""
    questions: int
    unmatched: int
    """Questions that share no term with the corpus."""
    errors: int
    """Questions that cannot be asked."""
    passages: int
    """Passages of the corpus."""
    pairs: int
    """Selected pairs of a question and a passage."""
    named: int
    """Questions that name a document, which is assumed to answer them."""
    own: int
    """How many of ``named`` have a selected passage of that document."""

    @property
    def saved(self) -> float:
        """Share of all pairs of a question and a passage that need not be read."""
        every = self.questions * self.passages
        return 1 - self.pairs / every if every else 0.0

    @property
    def own_selected(self) -> float | None:
        """Share of ``named`` that have a passage of their document; None if no question names one."""
        return self.own / self.named if self.named else None


def build_index(
    documents: Sequence[str],
    folder: str,
    config: CandidateConfig,
    *,
    actors: int = 1,
    progress: shards.Progress | None = None,
) -> Index:
    """Index the passages of a corpus; continues an interrupted call.

    Args:
        documents: Parquet files with columns ``row``, ``document_id``, ``text`` (may be null).
        folder: for the index, local or a URL; use it for these documents and this config only.
        config: how passages and terms are made.
        actors: Ray actors that index at the same time.
        progress: called with numbers of documents as shards finish.

    Raises:
        InputError: the language is unknown, or a file cannot be read or written.
    """
    Analyzer(config.language)
    plan = shards.cut(documents, config.documents_per_shard, folder, "arrow")
    counts = shards.run(plan, Indexer, {"config": config}, shards.Workers(actors=actors, threads=1), progress)
    whole = {name: int(counts.get(name, 0)) for name in ("documents", "passages", "terms")}
    return Index(
        files=tuple(shard.target for shard in plan),
        documents=whole["documents"],
        statistics=Statistics(passages=whole["passages"], terms=whole["terms"]),
    )


def select(
    index: Index,
    questions: Sequence[str],
    folder: str,
    config: CandidateConfig,
    *,
    actors: int = 1,
    progress: shards.Progress | None = None,
) -> Selection:
    """Write the best passages of each question to ``run-*.parquet``; continues an interrupted call.

    Args:
        index: from ``build_index``, with the same language.
        questions: Parquet files of schema ``tables.QUESTIONS``.
        folder: for the runs, local or a URL; use it for this index, these questions and this config only.
        config: number of passages, and parameters of BM25.
        actors: Ray actors that select at the same time.
        progress: called with numbers of questions as runs finish.

    Raises:
        InputError: a file cannot be read or written.
    """
    plan = [
        dataclasses.replace(shard, target=storage.join(folder, f"run-{shard.index:06d}.parquet"))
        for shard in shards.cut(questions, config.questions_per_run, folder, "parquet")
    ]
    options = {"config": config, "index": index}
    counts = shards.run(plan, Selector, options, shards.Workers(actors=actors, threads=1), progress)
    whole = {name: int(counts.get(name, 0)) for name in ("unmatched", "errors", "pairs", "named", "own")}
    return Selection(
        files=tuple(shard.target for shard in plan),
        questions=sum(shard.rows for shard in plan),
        passages=index.statistics.passages,
        **whole,
    )


class Indexer:
    """Makes the index of a shard of documents."""

    def __init__(self, config: CandidateConfig) -> None:
        self.config = config
        self.analyzer = Analyzer(config.language)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Turn documents into a table of schema ``passage_index.INDEX``."""
        made = make_index(rows, self.analyzer, self.config.passage_words, self.config.passage_overlap)
        index = ShardIndex(made)
        documents = len(rows) - rows["text"].null_count
        return made, {"documents": documents, "passages": len(index), "terms": int(index.length.sum())}


class Selector:
    """Finds the best passages for all questions of a run at once."""

    def __init__(self, config: CandidateConfig, index: Index) -> None:
        self.config = config
        self.statistics, self.shards = index.statistics, ShardIndexes(index.files, LocalCopies())
        self.analyzer = Analyzer(config.language)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Turn questions into a table of schema ``CANDIDATES``."""
        bad = rows["error"].is_valid().to_numpy()
        terms = [
            [] if error else self.analyzer.terms(question)
            for question, error in zip(rows["question"].to_pylist(), bad, strict=True)
        ]
        config = self.config
        ranked = best_passages(
            terms, self.shards, self.statistics, config.candidates, k1=config.k1, b=config.b
        )
        sizes = np.array([len(numbers) for numbers, _ in ranked], np.int64)
        question = np.repeat(np.arange(len(rows)), sizes)
        number = np.concatenate([numbers for numbers, _ in ranked])
        score = np.concatenate([scores for _, scores in ranked])
        order = np.argsort(number, kind="stable")
        places = locate(number[order], self.shards)
        found = _columns(rows.take(question[order]), places, score[order])
        named = rows["document_id"].is_valid().to_numpy() & ~bad
        own = _with_own(rows, question[order], places)
        found = found.sort_by([(name, "ascending") for name in ("row", "question_row", "start")])
        left = rows.filter(pa.array(sizes == 0))
        nowhere = pa.table({"row": pa.array([-1] * len(left), pa.int64())})
        counts: dict[str, float] = {
            "unmatched": int((sizes == 0).sum() - bad.sum()),
            "errors": int(bad.sum()),
        }
        counts |= {"pairs": len(found), "named": int(named.sum()), "own": int((own & named).sum())}
        return pa.concat_tables([_columns(left, nowhere, None), found]), counts


def _with_own(rows: pa.Table, question: npt.NDArray[np.int64], places: pa.Table) -> npt.NDArray[np.bool_]:
    """For each question, whether it has a passage of the document that it names."""
    same = pc.equal(rows["document_id"].take(question), places["document_id"]).fill_null(False)
    own = np.zeros(len(rows), bool)
    own[question[same.to_numpy()]] = True
    return own


def _columns(questions: pa.Table, places: pa.Table, score: Scores | None) -> pa.Table:
    """A table of schema ``CANDIDATES``; columns that are not given are null."""
    given = {name: questions[name] for name in ("question_row", "question_id", "question", "error")}
    given |= {name: places[name] for name in places.column_names}
    if score is not None:
        given["bm25"] = pa.array(score)
    columns = [given.get(field.name, pa.nulls(len(questions), field.type)) for field in CANDIDATES]
    return pa.table(columns, schema=CANDIDATES)
