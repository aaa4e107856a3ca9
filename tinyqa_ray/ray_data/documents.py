"""Reads the documents of a Dataset: each row has a path, or a name and bytes, and gets a text with places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus.files import pieces_column
from tinyqa_ray.corpus.sources import fault
from tinyqa_ray.documents import Document, Places, UnreadableError, read_isolated
from tinyqa_ray.documents.places import BOX, PAGES, PIECES

CARRIED = pa.schema(
    [
        pa.field("document_pages", PAGES),
        pa.field("document_pieces", PIECES),
        pa.field("document_error", pa.string()),
    ]
)
"""What rows have between the reading of their documents and the answers, beside the text."""
PLACED = pa.schema([pa.field("page", pa.int32()), pa.field("boxes", pa.list_(BOX))])
"""What rows have more in the end: on which page the answer begins, and the boxes of its lines, for PDF."""
ROWS_PER_BATCH = 16
"""Documents that a task reads at once: few, as their bytes may be many."""


def read_documents(
    rows: pa.Table, *, path: str, data: str | None, text: str, limits: DocumentLimits, prefix: str = ""
) -> pa.Table:
    """Read the documents of a table of rows, each in a process that may die.

    Args:
        rows: a table.
        path: column with their paths, URLs or, with ``data``, names.
        data: column with their bytes, which the result lacks; None opens the paths.
        text: column that gets the texts.
        limits: what a document may take.
        prefix: what the names of the columns of ``CARRIED`` begin with.

    Returns:
        the rows with their texts and the columns of ``CARRIED``.
    """
    names = rows[path].to_pylist()
    contents = [None] * len(rows) if data is None else rows[data]
    known: dict[str, tuple[Document | None, str | None]] = {}
    found = []
    for name, content in zip(names, contents, strict=True):
        if data is None and name in known:  # asked several questions
            found.append(known[name])
            continue
        read = _read(name, None if content is None else content.as_py(), data is not None, limits)
        if data is None and isinstance(name, str):
            known = {name: read}
        found.append(read)
    if data is not None:
        rows = rows.drop_columns([data])
    texts = [None if document is None else document.text for document, _ in found]
    rows = rows.append_column(text, pa.array(texts, pa.large_string()))
    places = [(None, None) if document is None else document.places.to_arrow() for document, _ in found]
    columns = (
        pa.array([pages for pages, _ in places], PAGES),
        pieces_column([pieces for _, pieces in places]),
        pa.array([error for _, error in found], pa.string()),
    )
    for name, column in zip(CARRIED.names, columns, strict=True):
        rows = rows.append_column(prefix + name, column)
    return rows


def _read(name: Any, data: Any, given: bool, limits: DocumentLimits) -> tuple[Document | None, str | None]:
    """The document, or why there is none."""
    if not isinstance(name, str) or (given and not isinstance(data, bytes)):
        return None, "the document has no path" if not isinstance(name, str) else "the document has no bytes"
    try:
        document = read_isolated(name, data if given else storage.read_bytes(name), limits)
    except UnreadableError as error:
        return None, f"the file {error}"
    except InputError as error:
        return None, str(error)
    wrong = fault(document.text)
    return (None, f"the text {wrong}") if wrong else (document, None)


def places(rows: pa.Table, prefix: str) -> list[Places]:
    """Where the characters of each row's document stand, from the columns of ``CARRIED``."""
    pages, pieces = (rows[prefix + name].combine_chunks() for name in CARRIED.names[:2])
    return [Places.from_arrow(*pair) for pair in zip(pages, pieces, strict=True)]


def placed(own: Places, start: int | None, end: int | None) -> dict[str, Any]:
    """Values of ``PLACED`` for an answer; null where there is none."""
    if start is None or end is None:
        return dict.fromkeys(PLACED.names)
    boxes: Sequence[dict[str, Any]] = [asdict(box) for box in own.boxes(start, end)]
    return {"page": own.page(start), "boxes": boxes or None}
