"""Rows of a Dataset ↔ SQuAD paragraphs of one question each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.squad import Paragraph


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionColumns:
    """Names of the columns that hold questions, in the form of the hub's ``squad_v2``."""

    id: str = "id"
    """A text or a number that names the row; without this column, question and context name it."""
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    """Gold answers, as ``{text: [...], answer_start: [...]}`` or a list of ``{text, answer_start}``; an empty
    one means that there is no answer. Without this column, questions are unlabelled."""

    @property
    def needed(self) -> tuple[str, str]:
        """The columns that rows must have."""
        return self.question, self.context


def paragraphs_of(rows: pa.Table, columns: QuestionColumns) -> tuple[list[Paragraph], list[str | None]]:
    """Rows as paragraphs of one question, whose ``copy`` is the row's number.

    Returns:
        the paragraphs of the rows that can be read, and for each row why it cannot, or None.
    """
    names = [columns.id, columns.question, columns.context, columns.answers]
    kept = [name for name in names if name in rows.column_names]
    made: list[Paragraph] = []
    errors: list[str | None] = []
    for number, row in enumerate(rows.select(kept).to_pylist()):
        given: dict[str, Any] = {"question": row[columns.question], "context": row[columns.context]}
        if columns.answers in row:
            given["answers"] = row[columns.answers]
        given["id"] = row.get(columns.id)
        if given["id"] is None:
            given["id"] = _name(given["question"], given["context"])
        try:
            paragraph = squad.paragraph_of_row(given, f"row {given['id']}")
        except InputError as error:
            errors.append(str(error))
            continue
        # The name decides what is drawn for a paragraph, and so must not depend on the batch.
        name = _name(given["id"], given["context"])
        made.append(replace(paragraph, paragraph_id=name, source_id=name, copy=number))
        errors.append(None)
    return made, errors


def answers_like(paragraph: Paragraph, kind: pa.DataType | None) -> Any:
    """A paragraph's answers in the form that a column of this type has."""
    found = [
        {"text": each.text, "answer_start": each.answer_start}
        for question in paragraph.questions
        for each in question.answers
    ]
    if kind is not None and pa.types.is_struct(kind):
        return {name: [each[name] for each in found] for name in ("text", "answer_start")}
    return found


def repeated(rows: pa.Table, numbers: Sequence[int], without: Sequence[str] = ()) -> pa.Table:
    """Rows by number, each as often as it is named, without some columns."""
    kept = [name for name in rows.column_names if name not in without]
    return rows.select(kept).take(pa.array(numbers, pa.int64()))


def _name(*values: Any) -> str:
    text = "\t".join(map(str, values))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
