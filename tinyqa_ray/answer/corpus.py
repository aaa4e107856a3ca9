"""The files that a corpus is answered from: normalised documents and questions, and what is asked of what."""

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
"""Gives the progress of a part of the work, by its name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """What decides an index, with the content of its documents."""

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
    """Files that workers read; they hold the rows in order, rows counted over all files of a kind."""

    documents: tuple[str, ...]
    """Of schema ``tables.DOCUMENTS``."""
    questions: tuple[str, ...]
    """Of schema ``tables.QUESTIONS``; none where a table of pairs holds them."""
    asked: tuple[str, ...]
    """Of schema ``tables.ASKED`` or ``candidates.CANDIDATES``; none where all is asked of all."""
    merged: bool
    """Whether a question is asked of several documents, whose answers are ranked together."""
    question_rows: int
    selection: candidates.Selection | None = None


def prepare(config: AnswerConfig, folder: str, watch: Watch) -> Corpus:
    """Read what was given into files under ``folder``; run again, it continues.

    Raises:
        InputError: see ``corpus.inputs``; nothing that this call wrote is left then.
    """
    if config.pairs is not None:
        pairs = inputs.write_pairs(config.pairs, storage.join(folder, "pairs"))
        return Corpus(
            documents=pairs.documents, questions=(), asked=pairs.asked, merged=False, question_rows=pairs.rows
        )
    assert config.documents is not None
    assert config.questions is not None
    sources.find(config.documents)  # a wrong path is found before a long list of questions is read
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
    """Files of the documents, and their index, which other runs may use too."""
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
