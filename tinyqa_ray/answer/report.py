"""What the answering stage reports."""

from __future__ import annotations

from dataclasses import dataclass

FOLDER = "answers"
"""Where the stage keeps its Parquet files, within its output."""


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
