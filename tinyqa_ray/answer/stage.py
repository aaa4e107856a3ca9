"""The answering stage: documents and questions → answers in Parquet, on Ray Data.

A question that names its document is asked of that document, and its answers are written at once. One that
does not is asked of every document, or of the passages that BM25 selects; the answers of each unit of work
are ranked together in a second pass over the questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tinyqa_ray import models, runs, shards, storage
from tinyqa_ray.answer.answerer import Answerer
from tinyqa_ray.answer.corpus import Corpus, Watch, prepare
from tinyqa_ray.answer.merge import Merger
from tinyqa_ray.answer.notes import Notes
from tinyqa_ray.answer.page import answers_html
from tinyqa_ray.answer.plan import Plan, Unit, plan
from tinyqa_ray.answer.rows import ANSWERS, write_jsonl
from tinyqa_ray.cluster import connected, quiet_models
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.corpus import tables
from tinyqa_ray.loading import check_model

FOLDER = "answers"
"""Where the stage keeps its Parquet files, within its output."""
JSONL = "answers-jsonl"
_WORK = "_work"
_QUESTIONS_A_MERGE = 1024
_REFUSED_A_FILE = 1 << 16

Progress = Callable[..., None]
"""Called with units done and in all, and ``note``: which part of the work is at hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerReport:
    """What became of the questions: ``questions`` = ``answered`` + ``unanswered`` + ``errors``."""

    documents: int
    unreadable_documents: int
    """Documents without a text that can be read; each is a row with ``error``, or of each question of it."""
    questions: int
    pairs: int
    """Pairs of a question and a document, or a passage of one, that were asked."""
    answered: int
    unanswered: int
    errors: int
    rows: int
    """Rows written."""
    passages: int | None = None
    """Passages of the corpus, where candidates were selected among them."""
    pairs_saved: float | None = None
    """Share of all pairs of a question and a passage that the selection left out."""
    own_document_selected: float | None = None
    """Of the questions that name their document, the share of which a passage of it was selected."""


def answer(config: AnswerConfig, output: str, progress: Progress | None = None) -> AnswerReport:
    """Answer questions about a corpus; write ``answers/*.parquet`` (schema ``ANSWERS``) under ``output``.

    A question that cannot be asked, or a document that cannot be read, becomes a row with ``error``. Run
    again, it continues.

    Raises:
        InputError: files or a model that cannot be read, or a folder of another run.
    """
    settings = models.read_settings(config.model, config.settings)
    with runs.stage(
        output,
        config,
        inputs=("model", "documents", "questions", "pairs"),
        extra={runs.SETTINGS: settings.identity},
        scratch=(_WORK,),
    ) as stage:
        if stage.finished:
            return stage.report(AnswerReport)
        work = stage.path(_WORK)
        quiet_models()
        check_model(config.model, config.window)
        watch = partial(_noted, progress)
        with connected():
            corpus = prepare(config, work, watch)
            cut = plan(corpus, config.rows_per_shard)
            counts = _answered(config, settings, stage, corpus, cut, watch)
        report = _report(corpus, cut, counts)
        page = answers_html(config, report, counts, list(Notes.read_all(f"{work}/notes")), corpus, cut)
        storage.write_atomic(stage.path("report.html"), page.encode())
        return stage.publish(report)


def _answered(
    config: AnswerConfig,
    settings: models.ModelSettings,
    stage: runs.Stage,
    corpus: Corpus,
    cut: Plan,
    watch: Watch,
) -> dict[str, float]:
    """Answer all units and, where questions are asked of several documents, rank what was found."""
    work, answers, jsonl = stage.path(_WORK), stage.path(FOLDER), stage.path(JSONL)
    notes = storage.join(work, "notes")
    workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus_per_actor, threads=config.threads)
    theirs = runs.for_workers(config, "model")
    target = storage.join(work, "found") if corpus.merged else answers
    todo = _shards(cut.units, storage.join(work, "units.parquet"), target)
    options = {"config": theirs, "settings": settings, "corpus": corpus, "output": jsonl, "notes": notes}
    counts = shards.run(todo, Answerer, options, workers, watch("answering"))
    if not corpus.merged:
        return counts
    merging: dict[str, Any] = {
        "config": theirs,
        "found": [shard.target for shard in sorted(todo, key=lambda shard: shard.index)],
        "threshold": settings.no_answer_threshold,
        "output": jsonl,
        "notes": notes,
    }
    questions = shards.cut(corpus.questions, _QUESTIONS_A_MERGE, answers, "parquet")
    few = shards.Workers(actors=config.actors, threads=1)
    counts = shards.run(questions, Merger, merging, few, watch("ranking"))
    return {**counts, "rows": counts["rows"] + _refuse_documents(config, corpus, cut, answers, jsonl)}


def _shards(units: list[Unit], source: str, folder: str) -> list[shards.Shard]:
    """A shard of each unit, the costly ones first: at the end, no actor is busy with a long one alone."""
    if storage.kind(source) == "absent":
        shards.write_input(source, Unit.table(units))
    made = [
        shards.Shard(
            unit.index,
            source,
            unit.index,
            1,
            storage.join(folder, f"part-{unit.index:06d}.parquet"),
            units=unit.pairs,
        )
        for unit in units
    ]
    # To a power of two only: otherwise in order, as actors hold what they read last.
    return sorted(made, key=lambda shard: -units[shard.index].size.bit_length())


def _refuse_documents(config: AnswerConfig, corpus: Corpus, cut: Plan, folder: str, jsonl: str) -> int:
    """Write a row with ``error`` for each document that cannot be read; return how many."""
    if not cut.unreadable:
        return 0
    names = ["document_id", "error", "meta"]
    with tables.Parts(folder, ANSWERS, shards.ROWS_PER_GROUP, _REFUSED_A_FILE, stem="unreadable") as parts:
        for batch in tables.batches(corpus.documents, names, 1 << 12):
            for row in batch.filter(batch.column(1).is_valid()).to_pylist():
                parts.add(*({**row, "rank": 0}.get(name) for name in ANSWERS.names))
        files = parts.finish()
    if config.jsonl:
        for number, file in enumerate(files):
            with tables.opened(file) as parquet:
                write_jsonl(f"{jsonl}/unreadable-{number:06d}.jsonl", parquet.read().to_pylist())
    return parts.rows


def _report(corpus: Corpus, cut: Plan, counts: dict[str, float]) -> AnswerReport:
    whole = {name: int(counts.get(name, 0)) for name in ("answered", "unanswered", "errors", "rows")}
    became = whole["answered"] + whole["unanswered"] + whole["errors"]
    assert became == corpus.question_rows, f"{corpus.question_rows} questions came in, {became} came out"
    selection = corpus.selection
    return AnswerReport(
        documents=cut.documents,
        unreadable_documents=cut.unreadable,
        questions=corpus.question_rows,
        pairs=sum(unit.pairs for unit in cut.units),
        passages=selection.passages if selection else None,
        pairs_saved=selection.saved if selection else None,
        own_document_selected=selection.own_selected if selection else None,
        **whole,
    )


def _noted(progress: Progress | None, note: str) -> shards.Progress | None:
    return partial(progress, note=note) if progress else None
