"""What the answering stage reports."""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "answers"
"""Folder of the Parquet files within the output of the stage."""
TEXTS = "texts"
"""Folder of the texts of documents that are files, to which the answers' places refer."""
WORK = "_work"
"""Folder of the stage, within its output, that only an unfinished run needs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerReport:
    """What became of the questions: ``questions`` = ``answered`` + ``unanswered`` + ``errors``."""

    documents: int
    unreadable_documents: int
    """Documents that cannot be read: one row with ``error`` each, or one per question asked of it."""
    questions: int
    pairs: int
    """Pairs of a question and a document (or a passage of it) that were asked."""
    answered: int
    unanswered: int
    errors: int
    rows: int
    """Rows written."""
    passages: int | None = None
    """Passages of the corpus, if candidates were selected among them."""
    pairs_saved: float | None = None
    """Share of all pairs of a question and a passage that the selection left out."""
    own_document_selected: float | None = None
    """Share of the questions naming their document for which a passage of that document was selected."""
    pages: int | None = None
    """Pages of the documents, where these are files."""
    pages_without_text: int | None = None
    """How many of them have no text, as scanned pages; a document without any text is unreadable."""
    pairs_read: int | None = None
    """Pairs that the model read, if a smaller one read all of them first."""
