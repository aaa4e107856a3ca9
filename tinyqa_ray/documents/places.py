"""Where the characters of a document stand: their pages and, for PDF, their boxes on the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

PAGES = pa.list_(
    pa.struct(
        [
            pa.field("page", pa.int32()),  # from 1
            pa.field("start", pa.int64()),  # characters of the document
            pa.field("end", pa.int64()),
            pa.field("width", pa.float32()),  # points; null: the format has no sizes
            pa.field("height", pa.float32()),
        ]
    )
)
PIECES = pa.list_(
    pa.struct(
        [
            pa.field("start", pa.int64()),  # characters of the document
            pa.field("end", pa.int64()),
            *(pa.field(name, pa.float32()) for name in ("left", "top", "right", "bottom")),
        ]
    )
)
"""Runs of characters without white space on one line, in order, each with its box; points, see ``Box``."""
BOX = pa.struct(
    [
        pa.field("page", pa.int32()),
        *(pa.field(name, pa.float64()) for name in ("left", "top", "right", "bottom")),
    ]
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle: points (1/72 inch), to hundredths, from the upper left corner of the page as shown."""

    page: int
    """From 1."""
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Page:
    """The characters [start, end) of a document that stand on a page; width and height are in points."""

    page: int
    start: int
    end: int
    width: float | None = None
    height: float | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters [start, end) of a document, without white space and on one line, and their box."""

    start: int
    end: int
    left: float
    top: float
    right: float
    bottom: float


class Places:
    """The pages and pieces of one document, searched by character."""

    def __init__(self, pages: Iterable[Page], pieces: Iterable[Piece] = ()) -> None:
        self.pages = tuple(pages)
        kept = [(each.start, each.end, each.left, each.top, each.right, each.bottom) for each in pieces]
        self._set(*zip(*kept, strict=True)) if kept else self._set()

    def _set(self, *columns: Any) -> None:
        """Take the columns of ``PIECES``; none for a document without pieces."""
        columns = columns or ((),) * 6
        self._spans: Ints = np.array(columns[:2], np.int64).T
        self._boxes: Floats = np.array(columns[2:], np.float32).T

    def page(self, start: int) -> int | None:
        """The page on which a character stands; None if the document has no pages."""
        at = int(np.searchsorted([page.start for page in self.pages], start, side="right")) - 1
        return self.pages[at].page if at >= 0 else None

    def boxes(self, start: int, end: int) -> list[Box]:
        """The boxes of the characters [start, end): one for each line that they stand on.

        Within a piece, all characters count as equally wide: only an answer that begins or ends within a
        word has a box that is not exact. Text that does not run from left to right has a box
        for each word.
        """
        first = int(np.searchsorted(self._spans[:, 1], start, side="right"))
        last = int(np.searchsorted(self._spans[:, 0], end, side="left"))
        found: list[Box] = []
        for (begin, until), (left, top, right, bottom) in zip(
            self._spans[first:last].tolist(), self._boxes[first:last].tolist(), strict=True
        ):
            width = (right - left) / (until - begin)
            right = left + width * (min(end, until) - begin)
            left += width * max(0, start - begin)
            sides = (round(side, 2) for side in (left, top, right, bottom))
            box = Box(self.page(begin) or 0, *sides)
            if found and (joined := _joined(found[-1], box)):
                found[-1] = joined
            else:
                found.append(box)
        return found

    def to_arrow(self) -> tuple[list[dict[str, Any]], pa.Array]:
        """Values for columns of the types ``PAGES`` and ``PIECES``; the second is the item of one row."""
        names = ("page", "start", "end", "width", "height")
        pages = [{name: getattr(page, name) for name in names} for page in self.pages]
        columns = [*self._spans.T, *self._boxes.T]
        kind = PIECES.value_type
        pieces = pa.StructArray.from_arrays(
            [pa.array(column, field.type) for column, field in zip(columns, kind, strict=True)],
            fields=list(kind),
        )
        return pages, pieces

    @classmethod
    def from_arrow(cls, pages: pa.Scalar, pieces: pa.Scalar) -> Places:
        """The places in a row of two columns of the types ``PAGES`` and ``PIECES``."""
        return _Stored([Page(**page) for page in pages.as_py() or ()], pieces.values)


class _Stored(Places):
    def __init__(self, pages: Iterable[Page], pieces: pa.Array) -> None:
        super().__init__(pages)
        if pieces is not None and len(pieces):
            self._set(*(column.to_numpy() for column in pieces.flatten()))


def _joined(one: Box, other: Box) -> Box | None:
    """Both as one box, if the other goes on in the same line."""
    height = min(one.bottom - one.top, other.bottom - other.top)
    overlap = min(one.bottom, other.bottom) - max(one.top, other.top)
    if one.page != other.page or overlap < height / 2 or not -1 < other.left - one.right < 3 * height:
        return None
    top, bottom = min(one.top, other.top), max(one.bottom, other.bottom)
    return Box(one.page, one.left, top, max(one.right, other.right), bottom)
