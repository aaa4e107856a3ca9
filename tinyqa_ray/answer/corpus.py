"""The normalised files that answering reads: documents, questions, and which are asked of which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tinyqa_ray.configs import AnswerConfig, CandidateConfig, DocumentLimits
from tinyqa_ray.core import shards, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution
from tinyqa_ray.corpus import candidates, files, inputs, sources
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
    document_limits: DocumentLimits = DocumentLimits()
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
    texts: files.Texts | None = None
    """If documents are files: their texts, which are then ``documents``, of schema ``files.TEXTS``."""


def prepare(config: AnswerConfig, folder: str, texts: str, watch: Watch) -> Corpus:
    """Normalise the input into files under ``folder``; files of an interrupted run are reused.

    Args:
        config: configuration of the stage.
        folder: for what only an unfinished run needs.
        texts: folder for the texts of documents that are files, which are kept.
        watch: makes the callbacks for progress.

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
    found = files.find(config.documents)
    if found is None:
        sources.find(config.documents)  # a wrong path fails before a long list of questions is read
    written = storage.join(folder, "questions")
    questions = inputs.write_questions(config.questions, written)
    made = Corpus(
        documents=(), questions=questions.files, asked=(), merged=True, question_rows=questions.rows
    )
    try:
        if config.selection.candidates:
            return _selected(config, folder, made, found, texts, watch)
        read = _converted(config, found, texts, folder, watch) if found else None
        if read:
            documents = read.files
        else:
            documents = tuple(inputs.write_documents(config.documents, storage.join(folder, "documents")))
    except InputError:
        storage.delete_folder(written)
        raise
    asked: list[str] = []
    if questions.routed:
        asked = route(questions.files, documents, storage.join(folder, "asked"))
    return replace(made, documents=documents, asked=tuple(asked), merged=not questions.routed, texts=read)


def _converted(
    config: AnswerConfig, found: files.Files, texts: str, folder: str, watch: Watch
) -> files.Texts:
    listing = storage.join(folder, "files.parquet")
    return files.convert(
        found,
        texts,
        listing,
        limits=config.document_limits,
        actors=config.actors,
        threads=config.threads,
        progress=watch("converting"),
    )


def _selected(
    config: AnswerConfig, folder: str, corpus: Corpus, found: files.Files | None, texts: str, watch: Watch
) -> Corpus:
    selection = config.selection
    place = config.index or storage.join(folder, "index")
    documents, index, read = _indexed(config, place, found, watch)
    if read:
        # The index may serve other runs, and be deleted one day; the answers' places refer to the texts.
        read = replace(read, files=tuple(_copied(file, texts) for file in read.files))
        documents = read.files
    chosen = candidates.select(
        index,
        corpus.questions,
        storage.join(folder, "asked"),
        selection,
        actors=config.actors,
        progress=watch("selecting"),
    )
    return replace(corpus, documents=documents, asked=chosen.files, selection=chosen, texts=read)


def _copied(file: str, folder: str) -> str:
    """A file copied into another folder, unless it is there."""
    target = storage.join(folder, file.rsplit("/", 1)[-1])
    if storage.kind(target) == "absent":
        storage.write_atomic(target, storage.chunks(file))
    return target


def _indexed(
    config: AnswerConfig, folder: str, found: files.Files | None, watch: Watch
) -> tuple[tuple[str, ...], candidates.Index, files.Texts | None]:
    """The files of the documents and their index, which other runs can reuse."""
    assert config.documents is not None
    selection: CandidateConfig = config.selection
    decides = IndexConfig(
        documents=config.documents,
        passage_words=selection.passage_words,
        passage_overlap=selection.passage_overlap,
        language=selection.language,
        document_limits=config.document_limits,
        documents_per_shard=selection.documents_per_shard,
    )
    whole = ("documents",) if found else ()
    with stage_folder.stage(folder, decides, inputs=("documents",), whole=whole) as stage:
        read = _converted(config, found, stage.path("texts"), folder, watch) if found else None
        if read:
            documents = read.files
        else:
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
    return documents, index, read
