"""The rows of an answer file, and which of the answers found are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import storage
from tinyqa_ray.documents.places import BOX
from tinyqa_ray.reader.answers import Answer, at_least

ANSWERS = pa.schema(
    [
        pa.field("question_id", pa.string()),  # null: the row reports an unreadable document
        pa.field("question", pa.string()),
        pa.field("document_id", pa.string()),  # null: no document of the corpus answers
        pa.field("rank", pa.int32()),
        pa.field("answer", pa.string()),  # null: there is none
        pa.field("score", pa.float64()),
        pa.field("start", pa.int64()),  # characters of the document
        pa.field("end", pa.int64()),
        pa.field("na_prob", pa.float64()),
        pa.field("error", pa.string()),  # null: fine
        pa.field("meta", pa.string()),  # JSON of the document's other columns; null: it has none
    ]
)
PLACED = pa.schema(
    [
        *ANSWERS,
        pa.field("page", pa.int32()),  # on which the answer begins, from 1; null: the format has no pages
        pa.field("boxes", pa.list_(BOX)),  # one for each of its lines, for PDF; null: none
    ]
)
"""The columns where documents are files: points from the upper left corner of the page as it is shown."""
PLACES = pa.field(
    "places",
    pa.list_(
        pa.struct(
            [
                pa.field("document_id", pa.string()),
                pa.field("page", pa.int32()),  # null: no file, or its format has no pages
                pa.field("start", pa.int64()),  # characters of the document
                pa.field("end", pa.int64()),
                pa.field("answer", pa.string()),  # as it stands there
                pa.field("score", pa.float64()),  # by this place alone
                pa.field("sentence", pa.string()),
                pa.field("sentence_start", pa.int64()),
            ]
        )
    ),
)
"""The last column with evidence: every place that says the answer, best first. The row has the best one."""
BINS = 20
"""Number of bins of the histogram of scores."""

Row = dict[str, Any]


def chosen(found: Sequence[Answer], config: AnswerConfig) -> list[Answer]:
    """The answers to a question that are written: those that score enough, and no-answers if wanted."""
    good = at_least(found, config.min_score)
    return [each for each in good if each.answer is not None or config.keep_no_answers]


def rows_of(
    key: Row,
    found: Sequence[Answer],
    meta: Sequence[str | None],
    places: Sequence[list[Row]] | None = None,
) -> list[Row]:
    """Rows of ``ANSWERS`` for the answers to one question.

    Args:
        key: the columns that all rows share.
        found: answers, best first.
        meta: for each answer, the metadata of its document.
        places: for each answer, its column ``places``, with evidence.
    """
    return [
        {
            **key,
            "document_id": each.document_id,
            "rank": rank,
            "answer": each.answer,
            "score": each.score,
            "start": each.start,
            "end": each.end,
            "na_prob": each.na_prob,
            "meta": own,
            "places": (places[rank] or None) if places is not None else None,
        }
        for rank, (each, own) in enumerate(zip(found, meta, strict=True))
    ]


def counted(found: Sequence[Answer], counts: dict[str, float]) -> None:
    """Count a question as answered or not, by its best answer, and the bin of that answer's score."""
    answered = bool(found) and found[0].answer is not None
    name = "answered" if answered else "unanswered"
    counts[name] = counts.get(name, 0) + 1
    if answered:
        place = f"score-{min(int(found[0].score * BINS), BINS - 1):02d}"
        counts[place] = counts.get(place, 0) + 1


def schema_of(config: AnswerConfig, *, files: bool) -> pa.Schema:
    """The schema of the answers of a run; ``files`` says whether its documents are files."""
    schema = PLACED if files else ANSWERS
    return schema.append(PLACES) if config.evidence else schema


def write_jsonl(path: str, rows: Sequence[Row], schema: pa.Schema = ANSWERS) -> None:
    """Write rows of a schema of answers as JSON lines; ``meta`` becomes a JSON object."""
    lines = []
    for row in rows:
        whole = {name: row.get(name) for name in schema.names}
        whole["meta"] = json.loads(whole["meta"]) if whole["meta"] else None
        lines.append(json.dumps(whole, ensure_ascii=False) + "\n")
    storage.write_atomic(path, "".join(lines).encode("utf-8", "backslashreplace"))
