"""The pairs of a unit of work: a question, and a text in which its answer is sought."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.plan import Unit
from tinyqa_ray.answer.rows import Row
from tinyqa_ray.corpus import tables


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the text in which its answer is sought: a document or a passage of one."""

    question_row: int
    question_id: str
    question: str | None
    row: int
    document_id: str | None
    text: str | None
    """None if there is an error."""
    start: int
    """Where the text begins in its document, in characters."""
    meta: str | None
    error: str | None
    whole: str | None = None
    """The text of the whole document."""


def pairs_of(unit: Unit, corpus: Corpus) -> list[Pair]:
    """The pairs of a unit, sorted by document, then question, then place in the document."""
    if corpus.asked:
        asked = tables.asked_of(corpus.asked, unit.first_row, unit.last_row).to_pylist()
        asked = [row for row in asked if unit.first_question <= row["question_row"] <= unit.last_question]
        asked.sort(key=lambda row: (row["row"], row["question_row"], row.get("start") or 0))
    else:
        questions = [
            tables.rows_between(file, "question_row", unit.first_question, unit.last_question)
            for file in corpus.questions
        ]
        every = pa.concat_tables(questions).to_pylist()
        asked = [{**each, "row": row} for row in range(unit.first_row, unit.last_row + 1) for each in every]
    rows = sorted({row["row"] for row in asked})
    read = tables.documents_at(unit.file, rows).to_pylist() if unit.file else []
    documents = {document["row"]: document for document in read}
    pairs = [_pair(row, documents.get(row["row"])) for row in asked]
    # A merged corpus reports each bad document or question once, in a later step, and not once per pair.
    return [pair for pair in pairs if pair.error is None] if corpus.merged else pairs


def _pair(asked: Row, document: Row | None) -> Pair:
    start, end = asked.get("start"), asked.get("end")
    text = document["text"] if document else None
    return Pair(
        question_row=asked["question_row"],
        question_id=asked["question_id"],
        question=asked["question"],
        row=asked["row"],
        document_id=document["document_id"] if document else asked["document_id"],
        text=text if text is None or start is None else text[start:end],
        start=start or 0,
        meta=document["meta"] if document else None,
        error=asked["error"] or (document["error"] if document else None),
        whole=text,
    )
