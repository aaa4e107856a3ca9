"""Documents and questions of any format → normalised Parquet; streamed, with the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyqa_ray.core import shards, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import sources, tables
from tinyqa_ray.corpus.ids import IdIndex

DOCUMENT_ID = ("id", "document_id")
TEXT = ("text", "content", "context")
QUESTION_ID = ("id", "question_id")
CONTEXT = ("context", "text", "content")
"""Accepted column names in order of preference: the first that exists is read."""

ROWS_PER_FILE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Normalised questions, of schema ``tables.QUESTIONS``."""

    files: tuple[str, ...]
    rows: int
    routed: bool
    """Whether each question names its document; if not, it is asked of every document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Questions, each with its own document; the question and the document of a pair have the same row."""

    documents: tuple[str, ...]
    """Files of schema ``tables.DOCUMENTS``; a ``document_id`` may occur more than once."""
    asked: tuple[str, ...]
    """Files of schema ``tables.ASKED``, for ``tables.asked_of``."""
    rows: int


def write_documents(documents: str, folder: str, rows_per_file: int = ROWS_PER_FILE) -> list[str]:
    """Write documents as Parquet of schema ``tables.DOCUMENTS``; continues an interrupted call.

    Memory grows only by 16 bytes per document and by the names of text files.

    Args:
        documents: file or folder, local or a URL: Parquet, JSONL, CSV or TSV with a header; it has a
            column of ``DOCUMENT_ID`` and one of ``TEXT``, and all others become ``meta``. Or a folder of
            ``.txt`` files.
        folder: where the files go; use it for nothing else.
        rows_per_file: most documents in a file.

    Returns:
        The files, in the order of the rows.

    Raises:
        InputError: there are no documents, a file cannot be read or lacks a column, or an id is missing
            or occurs twice. A document whose text is unreadable raises nothing: its row has ``error``.
    """
    if done := tables.finished(folder):
        return list(done["files"])
    plan = [(each, each.column(DOCUMENT_ID), each.column(TEXT)) for each in sources.find(documents)]
    with tables.Parts(folder, tables.DOCUMENTS, shards.ROWS_PER_GROUP, rows_per_file) as parts:
        for source, id_name, text_name in plan:
            for where, values in source.rows():
                document_id = sources.identifier(values.pop(id_name, None), f"{where}: {id_name}")
                parts.add(parts.rows, document_id, *_document(text_name, values))
        files = _closed(parts, documents, "documents")
        _refuse_repeats(files, ["document_id"], documents)
    tables.finish(folder, files)
    return files


def write_questions(questions: str, folder: str) -> Questions:
    """Write questions as Parquet of schema ``tables.QUESTIONS``; continues an interrupted call.

    Args:
        questions: file or folder as in ``write_documents``, except text files, with columns ``question``
            and optionally ``document_id`` and one of ``QUESTION_ID`` (default: the row number, from 0).
        folder: where the files go; use it for nothing else.

    Raises:
        InputError: as in ``write_documents``; or only some questions have a document or an id; or an id
            occurs twice among questions of one document, or of none.
    """
    if done := tables.finished(folder):
        return Questions(files=tuple(done["files"]), rows=done["rows"], routed=done["routed"])
    plan = sources.find(questions)
    for source in plan:
        source.column(("question",))
    columns = _Columns()
    with tables.Parts(folder, tables.QUESTIONS, tables.ASKED_PER_GROUP, ROWS_PER_FILE) as parts:
        for source in plan:
            for where, values in source.rows((*QUESTION_ID, "question", "document_id")):
                parts.add(parts.rows, *columns.take(values, where, parts.rows))
        files = _closed(parts, questions, "questions")
        _refuse_repeats(files, columns.key, questions)
    tables.finish(folder, files, rows=parts.rows, routed=columns.routed)
    return Questions(files=tuple(files), rows=parts.rows, routed=columns.routed)


def write_pairs(table: str, folder: str) -> Pairs:
    """Write a table of questions with their contexts as documents and the questions asked of them.

    Args:
        table: as ``questions`` of ``write_questions``, and with a column of ``CONTEXT``. Without a column
            ``document_id``, the id of row n is ``row-n``. Other columns become the document's ``meta``.
        folder: its subfolders ``documents`` and ``asked`` receive the files.

    Raises:
        InputError: as in ``write_questions``.
    """
    if done := tables.finished(folder):
        cut = done["documents"]
        return Pairs(
            documents=tuple(done["files"][:cut]), asked=tuple(done["files"][cut:]), rows=done["rows"]
        )
    documents, asked = (storage.join(folder, name) for name in ("documents", "asked"))
    plan = [(each, each.column(("question",)), each.column(CONTEXT)) for each in sources.find(table)]
    columns = _Columns()
    with (
        tables.Parts(documents, tables.DOCUMENTS, shards.ROWS_PER_GROUP, ROWS_PER_FILE) as texts,
        tables.Parts(asked, tables.ASKED, tables.ASKED_PER_GROUP, ROWS_PER_FILE, stem="run") as runs,
    ):
        for source, _, context_name in plan:
            for where, values in source.rows():
                row = texts.rows
                question_id, question, given, error = columns.take(values, where, row)
                document_id = given or f"row-{row}"
                texts.add(row, document_id, *_document(context_name, values))
                runs.add(row, row, question_id, question, document_id, error)
        files, run_files = _closed(texts, table, "pairs"), runs.finish()
        _refuse_repeats(run_files, columns.key, table)
    tables.finish(folder, [*files, *run_files], documents=len(files), rows=texts.rows)
    return Pairs(documents=tuple(files), asked=tuple(run_files), rows=texts.rows)


class _Columns:
    """Reads the columns of questions; an optional one must be given in all rows or in none."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[bool, str]] = {}

    def take(
        self, values: dict[str, Any], where: str, number: int
    ) -> tuple[str, str | None, str | None, str | None]:
        """Remove a row's columns from ``values``; return question id, question, document id and error."""
        question_id = self._optional("an id", QUESTION_ID, values, where) or str(number)
        document_id = self._optional("a document_id", ("document_id",), values, where)
        question = values.pop("question", None)
        wrong = sources.fault(question)
        if wrong:
            return question_id, None, document_id, f"the question {wrong}"
        return question_id, question, document_id, None

    @property
    def routed(self) -> bool:
        """Whether the rows have a document id."""
        return self._first["a document_id"][0]

    @property
    def key(self) -> list[str]:
        """The columns that together identify a question."""
        return ["question_id", "document_id"] if self.routed else ["question_id"]

    def _optional(self, what: str, names: Sequence[str], values: dict[str, Any], where: str) -> str | None:
        name = next((name for name in names if sources.given(values.get(name))), None)
        had, first = self._first.setdefault(what, (name is not None, where))
        if had != (name is not None):
            with_, without = (first, where) if had else (where, first)
            raise InputError(f"{with_} has {what}, {without} has none; give it in all rows or in none")
        return None if name is None else sources.identifier(values.pop(name), f"{where}: {name}")


def _document(text_name: str, values: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Text, meta and error of a document; all ``values`` other than the text become its meta."""
    text = values.pop(text_name, None)
    wrong = sources.fault(text)
    meta = _json(values) if values else None
    return (None, meta, f"the text {wrong}") if wrong else (text, meta, None)


def _json(values: dict[str, Any]) -> str:
    """Values as JSON; NaN and infinities become null, and types that JSON lacks become ``str(value)``."""
    try:
        text = json.dumps(values, ensure_ascii=False, allow_nan=False, default=str)
        text.encode()
    except ValueError:  # NaN, infinity, or half a surrogate pair, which stays escaped
        finite = json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite)
    return text


def _closed(parts: tables.Parts, path: str, what: str) -> list[str]:
    if not parts.rows:
        raise InputError(f"{path}: holds no {what}")
    return parts.finish()


def _refuse_repeats(files: Sequence[str], key: list[str], path: str) -> None:
    index = IdIndex(files, key)
    if repeat := index.first_repeat():
        (values,) = index.keys(np.array([repeat[1]]))
        name = " of document ".join(map(sources.shown, values))
        raise InputError(
            f"{path}: id {name} comes twice, in rows {repeat[0] + 1} and {repeat[1] + 1}; make ids unique"
        )
