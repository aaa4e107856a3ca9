"""Words and lines of a page, and columns that are drawn line by line across the page.

Such a page has lines with a wide gap at one and the same place (a gutter). It is cut there, as in the
recursive XY cut (Nagy and Seth, 1984): what crosses the gutter stays, and divides what is above it from what
is below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from statistics import median

_GAP = 1.1
"""Narrowest gap within a line that may be a gutter, in heights of the line."""
_FEWEST = 3
"""Fewest lines on each side of a gutter."""
_WORDS_A_LINE = 3.0
"""Fewest words of a line of a column on average; with fewer it is rather a table, which is read in rows."""


@dataclass(frozen=True, slots=True)
class Word:
    """Characters without white space and their box: points, from the upper left corner of the page."""

    text: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class Line:
    """Words in one line, of which there is at least one."""

    words: tuple[Word, ...]
    divided: bool = False
    """Whether its last word goes on in the next line."""
    left: float = field(init=False)
    top: float = field(init=False)
    right: float = field(init=False)
    bottom: float = field(init=False)

    def __post_init__(self) -> None:
        for name, choose in (("left", min), ("top", min), ("right", max), ("bottom", max)):
            object.__setattr__(self, name, choose(getattr(word, name) for word in self.words))

    @property
    def height(self) -> float:
        """Of its words, in points: about the size of its font."""
        return max(median(word.bottom - word.top for word in self.words), 0.1)

    @property
    def text(self) -> str:
        """Its words with spaces."""
        return " ".join(word.text for word in self.words)


def in_reading_order(lines: Sequence[Line]) -> list[Line]:
    """Lines in the order in which they are read; the given order stays unless lines cross a gutter."""
    parts = [list(_split(line)) for line in lines]
    if sum(len(each) > 1 for each in parts) < _FEWEST:
        return list(lines)
    pieces = [piece for each in parts for piece in each]
    gutter = _gutter(parts, pieces)
    if gutter is None:
        return list(lines)
    made: list[Line] = []
    pieces.sort(key=lambda line: (line.top + line.bottom) / 2)
    for crossing, band in groupby(pieces, key=lambda line: line.left < gutter < line.right):
        group = list(band)
        if crossing:
            made += group
            continue
        for side in (True, False):
            column = [line for line in group if (line.right <= gutter) == side]
            made += in_reading_order(_rejoined(column))
    return made


def _split(line: Line) -> Iterator[Line]:
    """The parts of a line between wide gaps."""
    begun: list[Word] = []
    for word in line.words:
        if begun and word.left - begun[-1].right > _GAP * line.height:
            yield Line(tuple(begun))
            begun = []
        begun.append(word)
    yield Line(tuple(begun), divided=line.divided)


def _gutter(parts: Sequence[Sequence[Line]], pieces: Sequence[Line]) -> float | None:
    """The place between two columns that are drawn line by line; None if there is none."""
    beside = [pair for each in parts for pair in pairwise(each)]
    best, most = 0.0, 0
    for place in sorted({(one.right + other.left) / 2 for one, other in beside}):
        count = sum(one.right <= place <= other.left for one, other in beside)
        if count > most:
            best, most = place, count
    if most < _FEWEST:
        return None
    cut = [pair for pair in beside if pair[0].right <= best <= pair[1].left]
    if min(sum(len(pair[side].words) for pair in cut) for side in (0, 1)) < _WORDS_A_LINE * len(cut):
        return None
    crossing = sum(each.left < best < each.right for each in pieces)
    return best if crossing <= most else None


def _rejoined(column: Sequence[Line]) -> list[Line]:
    """The lines of a column, whose parts at one height are one line again."""
    made: list[Line] = []
    for line in column:
        before = made[-1] if made else None
        if before and min(line.bottom, before.bottom) - max(line.top, before.top) > 0.5 * min(
            line.height, before.height
        ):
            words = sorted((*before.words, *line.words), key=lambda word: word.left)
            made[-1] = Line(tuple(words), divided=line.divided or before.divided)
        else:
            made.append(line)
    return made
