"""Where answers stand: the page, and the boxes of their characters, read from the texts of files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import pyarrow as pa

from tinyqa_ray.answer.rows import Row, schema_of
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.corpus import tables
from tinyqa_ray.corpus.files import Texts
from tinyqa_ray.documents import Places

Stand = tuple[int, int, int]
"""Row of a document, and the first character and one past the last of an answer in it."""


def placed(
    rows: list[Row], spans: Sequence[Stand | None], texts: Texts | None, config: AnswerConfig
) -> pa.Schema:
    """Add where answers stand to their rows, if documents are files; return the schema of the rows."""
    if texts is not None:
        for row, place in zip(rows, places(texts, spans), strict=True):
            row |= place
    return schema_of(config, files=texts is not None)


def places(texts: Texts, spans: Sequence[Stand | None]) -> list[dict[str, Any]]:
    """The columns ``page`` and ``boxes`` of answers; both are null where there is no answer.

    One document is held at a time, so memory is bounded by the longest.
    """
    order = sorted((span, at) for at, span in enumerate(spans) if span is not None)
    made: list[dict[str, Any]] = [{"page": None, "boxes": None} for _ in spans]
    for row, same in groupby(order, key=lambda each: each[0][0]):
        found = of_document(texts, row)
        for (_, start, end), at in same:
            boxes = [asdict(box) for box in found.boxes(start, end)]
            made[at] = {"page": found.page(start), "boxes": boxes or None}
    return made


def of_document(texts: Texts, row: int) -> Places:
    """Where the characters of one document stand."""
    file = texts.files[bisect_right(texts.starts, row) - 1]
    table = tables.rows_between(file, "row", row, row, ["pages", "pieces"])
    return Places.from_arrow(table["pages"][0], table["pieces"][0])
