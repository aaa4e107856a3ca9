"""Lines of words on pages → one text: reading order, paragraphs, divided words, heads and feet of pages.

PDFium gives lines in the order in which the page draws them, which is the reading order of most programs.
What is left to do: columns that are drawn line by line across the page, words divided at the end of a line,
lines that repeat on page after page, and where a paragraph ends, which a PDF does not say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from tinyqa_ray.documents.columns import Line, Word, in_reading_order
from tinyqa_ray.documents.document import Document
from tinyqa_ray.documents.places import Page, Piece, Places

__all__ = ["Line", "Sheet", "Word", "composed"]

_REPEATED = 3
"""Pages on which a line must stand at the same place to be their head or foot; both, if there are two."""
_EDGE = 0.1
"""Share of the height of a page that is its head, and its foot."""
_EDGE_LINES = 3
"""Lines at either end of a page that may be its head or foot."""
_NUMBER = re.compile(r"\d+|\b[ivxlc]+\b")
_PAGE_NUMBER = re.compile(r"[-–\s]*(page\s+)?\d{1,4}(\s*(/|of)\s*\d{1,4})?[-–\s]*", re.IGNORECASE)
_BULLET = re.compile(r"[•◦▪‣●○■□–*·\uf0b7-]|\(?(\d{1,2}|[a-z])[.)]")
_SENTENCE_END = re.compile(r"[.!?:;…][\"'”\u2019»)\]]*$")
_LETTERS = {"\ufb00": "ff", "\ufb01": "fi", "\ufb02": "fl", "\ufb03": "ffi", "\ufb04": "ffl", "\ufb05": "st"}
_PLAIN = str.maketrans({**_LETTERS, "\ufb06": "st", "\xad": "", "\u200b": "", "\ufeff": "", "\ufffe": "-"})
_NO_LETTER = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Sheet:
    """A page: its number from 1, its size in points, and its lines as they are drawn."""

    number: int
    width: float
    height: float
    lines: tuple[Line, ...]


def composed(sheets: Sequence[Sheet]) -> Document:
    """The text of pages: paragraphs apart by blank lines, divided words joined, heads and feet left out."""
    ordered = [in_reading_order(sheet.lines) for sheet in sheets]
    repeated = _repeated(sheets, ordered)
    bodies = [
        [line for line in lines if _key(sheet, line) not in repeated]
        for sheet, lines in zip(sheets, ordered, strict=True)
    ]
    # A document of nothing but repeated lines has them as its text.
    bodies = bodies if any(bodies) else ordered
    writer = _Writer(bodies)
    for sheet, lines in zip(sheets, bodies, strict=True):
        writer.page(sheet, lines)
    return Document("".join(writer.parts), Places(writer.pages, writer.pieces))


def _key(sheet: Sheet, line: Line) -> tuple[str, int] | None:
    """What the heads of two pages have in common: words without numbers, and height; None within the page."""
    share = line.top / max(sheet.height, 1.0)
    if _EDGE < share < 1 - _EDGE:
        return None
    return _NUMBER.sub("#", line.text.lower()), round(share * 50)


def _repeated(sheets: Sequence[Sheet], ordered: Sequence[Sequence[Line]]) -> set[tuple[str, int] | None]:
    """The keys of lines that stand at the head or foot of several pages, at the same height.

    On fewer pages than that, only a line of nothing but the page's number is known to be its foot.
    """
    seen: Counter[tuple[str, int] | None] = Counter()
    numbers = set()
    for sheet, lines in zip(sheets, ordered, strict=True):
        by_height = sorted(lines, key=lambda line: line.top)
        edges = {id(line): line for line in (*by_height[:_EDGE_LINES], *by_height[-_EDGE_LINES:])}
        seen.update({_key(sheet, line) for line in edges.values()})
        numbers |= {
            _key(sheet, line)
            for line in (by_height[:1] + by_height[-1:])
            if len(by_height) > 2 and _PAGE_NUMBER.fullmatch(line.text) and str(sheet.number) in line.text
        }
    needed = max(min(_REPEATED, len(sheets)), 2, len(sheets) // 4)
    return ({key for key, count in seen.items() if count >= needed} | numbers) - {None}


class _Writer:
    """Appends lines to a text, and notes where pages and words begin."""

    def __init__(self, bodies: Sequence[Sequence[Line]]) -> None:
        self.parts: list[str] = []
        self.pages: list[Page] = []
        self.pieces: list[Piece] = []
        self._at = 0
        self._before: Line | None = None
        self._known = {
            word.text.strip(".,;:!?()\"'").lower()
            for lines in bodies
            for line in lines
            for word in line.words
        }

    def page(self, sheet: Sheet, lines: Sequence[Line]) -> None:
        """Append the lines of a page."""
        pitch, rights = _pitch(lines), _rights(lines)
        start = None
        for line in lines:
            self._join(line, pitch, rights, new_page=start is None)
            start = self._at if start is None else start
            self._append(line)
        start = self._at if start is None else start
        self.pages.append(Page(sheet.number, start, self._at, sheet.width, sheet.height))

    def _join(self, line: Line, pitch: float, rights: dict[int, float], *, new_page: bool) -> None:
        """Write what stands between the line before and this one."""
        before = self._before
        if before is None:
            return
        right = rights.get(_column(before), before.right)
        if _goes_on(before, line, pitch, right, new_page=new_page):
            if not self._unhyphenate(before, line):
                self._write(" ")
        else:
            self._write("\n\n")

    def _unhyphenate(self, before: Line, line: Line) -> bool:
        """Join a word divided between two lines; False if the first line does not end in a hyphen."""
        one, other = before.words[-1].text, line.words[0].text
        if len(one) < 2 or one[-1] not in "-\u2010":
            return False
        if one[-2].isdigit() and other[0].isdigit():  # a range
            return True
        if not one[-2].isalpha() or not other[0].isalpha():
            return False
        stem = one[:-1]
        whole, hyphened = (f"{stem}{mark}{other}".strip(".,;:!?()\"'").lower() for mark in ("", "-"))
        # A hyphen of the word itself: elsewhere it has one, or a capital follows.
        if hyphened in self._known or (other[0].isupper() and whole not in self._known):
            return True
        if "-" in stem and whole not in self._known:
            return True
        piece = self.pieces[-1]
        self.parts[-1] = self.parts[-1][:-1]
        self._at -= 1
        self.pieces[-1] = Piece(piece.start, piece.end - 1, piece.left, piece.top, piece.right, piece.bottom)
        return True

    def _append(self, line: Line) -> None:
        for number, word in enumerate(line.words):
            if number:
                self._write(" ")
            start = self._at
            self._write(word.text)
            self.pieces.append(Piece(start, self._at, word.left, word.top, word.right, word.bottom))
        self._before = line

    def _write(self, text: str) -> None:
        self.parts.append(text)
        self._at += len(text)


def _pitch(lines: Sequence[Line]) -> float:
    """The usual distance of a line from the one above it, in heights of the line."""
    found = [
        gap for one, other in pairwise(lines) if 0 < (gap := (other.bottom - one.bottom) / other.height) < 3
    ]
    return median(found) if found else 1.2


def _column(line: Line) -> int:
    """What lines have in common that begin at about the same place."""
    return round(line.left / 40)


def _rights(lines: Sequence[Line]) -> dict[int, float]:
    """Where the longest line of each column ends."""
    found: dict[int, float] = {}
    for line in lines:
        found[_column(line)] = max(line.right, found.get(_column(line), 0.0))
    return found


def _goes_on(before: Line, line: Line, pitch: float, right: float, *, new_page: bool) -> bool:
    """Whether a line continues the paragraph of the line before it."""
    if not 0.85 < line.height / max(before.height, 0.1) < 1.18 or _BULLET.fullmatch(line.words[0].text):
        return False
    ended = bool(_SENTENCE_END.search(before.words[-1].text))
    shift = line.left - before.left
    beside = line.right < before.left or line.left > before.right
    if new_page or beside or line.bottom < before.bottom - before.height:
        # A new page or column: only the words can tell.
        return before.divided or (not ended and line.words[0].text[0].islower())
    gap = (line.bottom - before.bottom) / max(line.height, 0.1)
    if gap > pitch * 1.3 + 0.05:
        return False
    short = before.right < right - 0.5 * (right - before.left)
    return not (ended and (short or shift > 0.8 * line.height))


def plain(text: str) -> str:
    """A word as people write it: no ligatures, no marks that are not shown."""
    return _NO_LETTER.sub("", text.translate(_PLAIN))
