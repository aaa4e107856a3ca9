"""The normalised files that answering reads: documents, questions, and which are asked of which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tinyqa_ray.configs import AnswerConfig, CandidateConfig
from tinyqa_ray.core import shards, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution
from tinyqa_ray.corpus import candidates, inputs, sources
from tinyqa_ray.corpus.routing import route

Watch = Callable[[str], shards.Progress | None]
"""Takes the name of a part of the work; returns the callback for its progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """What an index depends on, besides the content of its documents."""

    documents: str
    passage_words: int
    passage_overlap: int
    language: str | None
    documents_per_shard: int = execution(0)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What an index holds."""

    passages: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Files that workers read; rows are in order and numbered across all files of a kind."""

    documents: tuple[str, ...]
    """Of schema ``tables.DOCUMENTS``."""
    questions: tuple[str, ...]
    """Of schema ``tables.QUESTIONS``; empty if the questions are in a table of pairs."""
    asked: tuple[str, ...]
    """Of schema ``tables.ASKED`` or ``candidates.CANDIDATES``; empty if every pair is asked."""
    merged: bool
    """Whether questions are asked of several documents, so that their answers must be ranked together."""
    question_rows: int
    selection: candidates.Selection | None = None


def prepare(config: AnswerConfig, folder: str, watch: Watch) -> Corpus:
    """Normalise the input into files under ``folder``; files of an interrupted run are reused.

    Raises:
        InputError: see ``corpus.inputs``; the files that this call wrote are then deleted.
    """
    if config.pairs is not None:
        pairs = inputs.write_pairs(config.pairs, storage.join(folder, "pairs"))
        return Corpus(
            documents=pairs.documents, questions=(), asked=pairs.asked, merged=False, question_rows=pairs.rows
        )
    assert config.documents is not None
    assert config.questions is not None
    sources.find(config.documents)  # a wrong path fails before a long list of questions is read
    written = storage.join(folder, "questions")
    questions = inputs.write_questions(config.questions, written)
    made = Corpus(
        documents=(), questions=questions.files, asked=(), merged=True, question_rows=questions.rows
    )
    try:
        if config.selection.candidates:
            return _selected(config, folder, made, watch)
        documents = tuple(inputs.write_documents(config.documents, storage.join(folder, "documents")))
    except InputError:
        storage.delete_folder(written)
        raise
    asked: list[str] = []
    if questions.routed:
        asked = route(questions.files, documents, storage.join(folder, "asked"))
    return replace(made, documents=documents, asked=tuple(asked), merged=not questions.routed)


def _selected(config: AnswerConfig, folder: str, corpus: Corpus, watch: Watch) -> Corpus:
    selection = config.selection
    documents, index = _indexed(config, config.index or storage.join(folder, "index"), watch)
    found = candidates.select(
        index,
        corpus.questions,
        storage.join(folder, "asked"),
        selection,
        actors=config.actors,
        progress=watch("selecting"),
    )
    return replace(corpus, documents=documents, asked=found.files, selection=found)


def _indexed(config: AnswerConfig, folder: str, watch: Watch) -> tuple[tuple[str, ...], candidates.Index]:
    """The files of the documents and their index, which other runs can reuse."""
    assert config.documents is not None
    selection: CandidateConfig = config.selection
    decides = IndexConfig(
        documents=config.documents,
        passage_words=selection.passage_words,
        passage_overlap=selection.passage_overlap,
        language=selection.language,
        documents_per_shard=selection.documents_per_shard,
    )
    with stage_folder.stage(folder, decides, inputs=("documents",)) as stage:
        documents = tuple(inputs.write_documents(config.documents, stage.path("documents")))
        index = candidates.build_index(
            documents,
            stage.path("passages"),
            selection,
            actors=config.actors,
            progress=watch("indexing"),
        )
        if not stage.finished:
            stage.publish(IndexReport(passages=index.statistics.passages))
    return documents, index
