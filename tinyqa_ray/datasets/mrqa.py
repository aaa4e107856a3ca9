"""Rows of MRQA 2019 (Fisch et al., arXiv 1910.09753) in the form of SQuAD's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_mrqa(row: Mapping[str, Any]) -> bool:
    """Whether a row of the hub has MRQA's columns."""
    return "detected_answers" in row and "qid" in row


def as_squad(row: Mapping[str, Any]) -> dict[str, Any]:
    """The same row with SQuAD's columns; its title is its subset, and its answers are places in the context.

    MRQA gives the last character of an answer, not the one after it.
    """
    context = row["context"]
    places = [
        (start, end + 1)
        for spans in row["detected_answers"]["char_spans"]
        for start, end in zip(spans["start"], spans["end"], strict=True)
    ]
    distinct = dict.fromkeys(places)
    return {
        "id": row["qid"],
        "title": row["subset"],
        "context": context,
        "question": row["question"],
        "answers": {
            "text": [context[start:end] for start, end in distinct],
            "answer_start": [start for start, _ in distinct],
        },
    }
