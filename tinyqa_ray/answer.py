"""Answering a corpus: documents and questions → answers in Parquet, on Ray Data."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tinyqa_ray import runs, shards, storage
from tinyqa_ray.cluster import connected, cores, quiet_models
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.reader import Reader

FOLDER = "answers"
"""Where the stage keeps its Parquet files, within its output."""

ANSWERS = pa.schema(
    [
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),
        pa.field("document_id", pa.string()),
        pa.field("rank", pa.int32()),
        pa.field("answer", pa.string()),  # null: the document holds none
        pa.field("score", pa.float64()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("na_prob", pa.float64()),
        pa.field("error", pa.string()),  # null: fine
    ]
)

_ASKED = pa.schema(
    [(name, pa.string()) for name in ("question_id", "question", "document_id", "text", "error")]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerReport:
    """What became of the questions: ``questions`` = ``answered`` + ``unanswered`` + ``errors``."""

    documents: int
    questions: int
    answered: int
    unanswered: int
    errors: int


def answer(config: AnswerConfig, output: str, progress: shards.Progress | None = None) -> AnswerReport:
    """Ask each question of its document; write ``answers/*.parquet`` (schema ``ANSWERS``) under ``output``.

    A question that cannot be asked becomes a row with ``error``. Run again, it continues.

    Raises:
        InputError: files or a model that cannot be read, or a folder of another run.
    """
    with runs.stage(output, config, inputs=("model", "documents", "questions")) as stage:
        if stage.finished:
            return stage.report(AnswerReport)
        Reader.from_pretrained(config.model, window=config.window)
        documents = _documents(config.documents)
        asked = _asked(config.questions, documents)
        plan = stage.path("_input.parquet")
        shards.write_input(plan, pa.Table.from_pylist(asked, schema=_ASKED))
        todo = shards.cut([plan], config.rows_per_shard, stage.path(FOLDER), "parquet")
        workers = shards.Workers(actors=config.actors, num_gpus=config.num_gpus_per_actor)
        with connected():
            counts = shards.run(
                todo, Answerer, {"config": runs.for_workers(config, "model")}, workers, progress
            )
        totals = {name: int(value) for name, value in counts.items()}
        return stage.publish(AnswerReport(documents=len(documents), questions=len(asked), **totals))


class Answerer:
    """Answers the questions of a shard."""

    def __init__(self, config: AnswerConfig) -> None:
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config = config
        device = "cuda" if config.num_gpus_per_actor else "cpu"
        self.reader = Reader.from_pretrained(config.model, window=config.window, device=device)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Questions with their documents in, answers out, in the same order."""
        asked = rows.to_pylist()
        good = [row for row in asked if row["error"] is None]
        found = self.reader.answer_many(
            [(row["question"], row["text"]) for row in good],
            top_k=self.config.top_k,
            max_answer_tokens=self.config.max_answer_tokens,
        )
        by_row = {id(row): answers for row, answers in zip(good, found, strict=True)}
        made: list[dict[str, Any]] = []
        for row in asked:
            key = {name: row[name] for name in ("question_id", "question", "document_id")}
            if row["error"] is not None:
                made.append({**key, "rank": 0, "error": row["error"]})
            for rank, best in enumerate(by_row.get(id(row), [])):
                spot = {"answer": best.answer, "start": best.start, "end": best.end}
                made.append({**key, "rank": rank, **spot, "score": best.score, "na_prob": best.na_prob})
        answered = sum(answers[0].answer is not None for answers in found)
        counts: dict[str, float] = {"answered": answered, "unanswered": len(good) - answered}
        return pa.Table.from_pylist(made, schema=ANSWERS), {**counts, "errors": len(asked) - len(good)}


def _documents(file: str) -> dict[str, Any]:
    documents: dict[str, Any] = {}
    for number, row in _json_lines(file, ("id", "text")):
        if row["id"] in documents:
            raise InputError(f"{file}: line {number}: id {row['id']!r} appears twice; make ids unique")
        documents[row["id"]] = row["text"]
    if not documents:
        raise InputError(f"{file}: holds no documents")
    return documents


def _asked(file: str, documents: dict[str, Any]) -> list[dict[str, Any]]:
    """Questions joined with their documents, neighbours of one document together."""
    asked: dict[tuple[str, str], dict[str, Any]] = {}
    for number, row in _json_lines(file, ("id", "question", "document_id")):
        key = (row["id"], row["document_id"])
        if key in asked:
            raise InputError(f"{file}: line {number}: id {key[0]!r} asks document {key[1]!r} twice")
        question, text = row["question"], documents.get(key[1])
        error = _error(question, text, key[1], documents)
        asked[key] = {
            "question_id": key[0],
            "document_id": key[1],
            "question": question if isinstance(question, str) and _is_unicode(question) else None,
            "text": None if error else text,
            "error": error,
        }
    if not asked:
        raise InputError(f"{file}: holds no questions")
    order = {document: i for i, document in enumerate(documents)}
    return sorted(asked.values(), key=lambda row: order.get(row["document_id"], len(order)))


def _error(question: Any, text: Any, document: str, documents: dict[str, Any]) -> str | None:
    """Why a question cannot be asked, if it cannot."""
    if document not in documents:
        return f"document {document!r} is not among the documents"
    if not isinstance(text, str):
        return f"the document's text is {type(text).__name__}, not a string"
    if not isinstance(question, str) or not question.strip():
        return "the question is empty"
    for name, value in (("document's text", text), ("question", question)):
        if not _is_unicode(value):
            return f"the {name} holds half a surrogate pair"
    return None


def _is_unicode(text: str) -> bool:
    """Whether a text is without halves of surrogate pairs, which JSON can write and Arrow cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_lines(file: str, columns: tuple[str, ...]) -> list[tuple[int, dict[str, Any]]]:
    """Line number and value of each line, all of which have the columns; ids as text."""
    rows = []
    for number, line in enumerate(storage.read_bytes(file).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}: line {number}: not JSON ({error}); give one object a line") from None
        missing = [name for name in columns if name not in row] if isinstance(row, dict) else columns
        if missing:
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"{file}: line {number}: lacks {', '.join(missing)}; found {found}")
        for name in columns:
            if name.endswith("id"):
                row[name] = _id(row[name], f"{file}: line {number}: {name}")
        rows.append((number, row))
    return rows


def _id(value: Any, what: str) -> str:
    if not isinstance(value, str | int) or not _is_unicode(str(value)):
        raise InputError(f"{what} is {reprlib.repr(value)}; give a string or a whole number")
    return str(value)
