"""The work of the answering stage.

A question that names its document is asked of that document, and its answers are written at once. One that
does not is asked of every document, or of the passages that BM25 selects; the answers of each unit of work
are ranked together in a second pass over the questions. With a smaller model for a first pass, that one reads
all pairs before, and the model itself only those that are near the best of their question.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tinyqa_ray.answer.answerer import Answerer
from tinyqa_ray.answer.corpus import Corpus, Watch, prepare
from tinyqa_ray.answer.engine import engine_of
from tinyqa_ray.answer.first_pass import FirstPass, FirstReader, write_best
from tinyqa_ray.answer.found import wants_all
from tinyqa_ray.answer.merge import Merger
from tinyqa_ray.answer.notes import Notes
from tinyqa_ray.answer.page import answers_html
from tinyqa_ray.answer.plan import Plan, Unit, plan
from tinyqa_ray.answer.report import FOLDER, TEXTS, WORK, AnswerReport
from tinyqa_ray.answer.rows import schema_of, write_jsonl
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import shards, stage_folder, storage
from tinyqa_ray.core.cluster import connected, quiet_models
from tinyqa_ray.corpus import tables
from tinyqa_ray.engines.load import check_model
from tinyqa_ray.models import hub
from tinyqa_ray.models.settings import ModelSettings, keep_of
from tinyqa_ray.reader.reader import check_first_reader

JSONL = "answers-jsonl"
_QUESTIONS_A_MERGE = 1024
_QUESTIONS_A_MERGE_OF_ALL = 128
"""Fewer, where each question may have a thousand answers."""
_REFUSED_A_FILE = 1 << 16


def work(
    config: AnswerConfig,
    settings: ModelSettings,
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> AnswerReport:
    """Do the units that are not done yet, write the page, and report what became of the questions."""
    folder = stage.path(WORK)
    quiet_models()
    config = hub.pinned(config, stage, "model", "first_pass")
    check_model(config.model, config.window)
    if config.first_pass is not None:
        check_first_reader(config.first_pass, config.window)
    watch = partial(_noted, progress)
    with connected():
        corpus = prepare(config, folder, stage.path(TEXTS), watch)
        cut = plan(corpus, config.rows_per_shard)
        counts = _answered(config, settings, stage, corpus, cut, watch)
    report = _report(corpus, cut, counts)
    page = answers_html(config, report, counts, list(Notes.read_all(f"{folder}/notes")), corpus, cut)
    storage.write_atomic(stage.path("report.html"), page.encode())
    return report


def _answered(
    config: AnswerConfig,
    settings: ModelSettings,
    stage: stage_folder.Stage,
    corpus: Corpus,
    cut: Plan,
    watch: Watch,
) -> dict[str, float]:
    """Answer all units; if questions are asked of several documents, also rank their answers."""
    scratch, answers, jsonl = stage.path(WORK), stage.path(FOLDER), stage.path(JSONL)
    notes = storage.join(scratch, "notes")
    source = storage.join(scratch, "units.parquet")
    engine = engine_of(config, stage, begun=storage.kind(source) != "absent")
    workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus, threads=config.threads)
    theirs = stage_folder.for_workers(config, "model", "first_pass")
    target = storage.join(scratch, "found") if corpus.merged else answers
    todo = _shards(cut.units, source, target)
    options = {"config": theirs, "settings": settings, "corpus": corpus, "output": jsonl, "notes": notes}
    options["engine"] = engine
    # A question that is asked of one text alone would keep it in any case.
    if theirs.first_pass is not None and corpus.merged:
        keep = keep_of(theirs.first_pass, config.first_pass_keep, settings)
        options["first"] = _first_pass(theirs, keep, corpus, cut, scratch, workers, watch)
    counts = shards.run(todo, Answerer, options, workers, watch("answering"))
    if not corpus.merged:
        return counts
    merging: dict[str, Any] = {
        "config": theirs,
        "found": [shard.target for shard in sorted(todo, key=lambda shard: shard.index)],
        "settings": settings,
        "texts": corpus.texts,
        "output": jsonl,
        "notes": notes,
    }
    together = _QUESTIONS_A_MERGE_OF_ALL if wants_all(config) else _QUESTIONS_A_MERGE
    questions = shards.cut(corpus.questions, together, answers, "parquet")
    few = shards.Workers(actors=config.actors, threads=1)
    read = {name: counts[name] for name in ("pairs_read",) if name in counts}
    counts = shards.run(questions, Merger, merging, few, watch("ranking"))
    return {**counts, **read, "rows": counts["rows"] + _refuse_documents(config, corpus, cut, answers, jsonl)}


def _first_pass(
    config: AnswerConfig,
    keep: float,
    corpus: Corpus,
    cut: Plan,
    scratch: str,
    workers: shards.Workers,
    watch: Watch,
) -> FirstPass:
    """Have the smaller model read all pairs, and note how sure it is of the best text of each question."""
    todo = _shards(cut.units, storage.join(scratch, "units.parquet"), storage.join(scratch, "first"))
    shards.run(todo, FirstReader, {"config": config, "corpus": corpus}, workers, watch("first pass"))
    files = tuple(shard.target for shard in sorted(todo, key=lambda shard: shard.index))
    best = storage.join(scratch, "first-best.parquet")
    if storage.kind(best) == "absent":
        write_best(files, corpus.question_rows, best)
    return FirstPass(files=files, best=best, keep=keep)


def _shards(units: list[Unit], source: str, folder: str) -> list[shards.Shard]:
    """A shard per unit, costly ones first, so that no actor is left alone with a long one at the end."""
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
    # Sizes are compared by power of two; within one, order is kept, as actors cache what they read last.
    return sorted(made, key=lambda shard: -units[shard.index].size.bit_length())


def _refuse_documents(config: AnswerConfig, corpus: Corpus, cut: Plan, folder: str, jsonl: str) -> int:
    """Write a row with ``error`` for each document that cannot be read; return the number of rows."""
    if not cut.unreadable:
        return 0
    names = ["document_id", "error", "meta"]
    schema = schema_of(config, files=corpus.texts is not None)
    with tables.Parts(folder, schema, shards.ROWS_PER_GROUP, _REFUSED_A_FILE, stem="unreadable") as parts:
        for batch in tables.batches(corpus.documents, names, 1 << 12):
            for row in batch.filter(batch.column(1).is_valid()).to_pylist():
                parts.add(*({**row, "rank": 0}.get(name) for name in schema.names))
        files = parts.finish()
    if config.jsonl:
        for number, file in enumerate(files):
            with tables.opened(file) as parquet:
                write_jsonl(f"{jsonl}/unreadable-{number:06d}.jsonl", parquet.read().to_pylist(), schema)
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
        pages=corpus.texts.pages if corpus.texts else None,
        pages_without_text=corpus.texts.pages_without_text if corpus.texts else None,
        pairs_read=int(counts["pairs_read"]) if "pairs_read" in counts else None,
        **whole,
    )


def _noted(progress: stage_folder.Progress | None, note: str) -> stage_folder.Progress | None:
    return partial(progress, note=note) if progress else None
