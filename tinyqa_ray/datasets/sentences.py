"""The sentences of a text, and the one around an answer, found by the signs that end sentences."""

from __future__ import annotations

import re

_END = re.compile(
    # a sign that a capital or digit follows
    r"""[.!?\u2026]["'\u201d\u2019\u00bb)\]]*(?=\s+["'\u201c\u2018\u00ab(\[]*[^\Wa-z_])"""
    r"|[\u3002\uff01\uff1f][\u300d\u300f\u201d]*|\n\s*\n"
)
_SHORT = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|ca|approx|e\.g|i\.e)|\.[A-Za-z])\.$")
"""An abbreviation or an initial, after which a sentence goes on."""
_AROUND = 400
"""Most characters of a sentence on either side of an answer; a longer one is cut between two words."""


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence of a text begins and ends, without white space at either side.

    One of more than ``2 * _AROUND`` characters is cut between two words.
    """
    ends = [
        match.end()
        for match in _END.finditer(text)
        if not _SHORT.search(text, max(0, match.start() - 8), match.start() + 1)
    ]
    found = []
    begin = 0
    for end in (*ends, len(text)):
        while begin < end:
            until = end
            if end - begin > 2 * _AROUND:
                space = text.rfind(" ", begin + 1, begin + 2 * _AROUND)
                until = space if space > begin else begin + 2 * _AROUND
            piece = text[begin:until]
            if piece.strip():
                first = begin + len(piece) - len(piece.lstrip())
                found.append((first, begin + len(piece.rstrip())))
            begin = until
    return found


def sentence_around(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the sentence of the characters [start, end) begins and ends; an answer may span several.

    Returns:
        first character and one past the last, without white space at either side; they hold the answer.
    """
    first, last = max(0, start - _AROUND), min(len(text), end + _AROUND)
    begin, until = first, last
    for match in _END.finditer(text, first, last):
        if _SHORT.search(text, max(first, match.start() - 8), match.start() + 1):
            continue
        if match.end() <= start:
            begin = match.end()
        elif match.end() >= end:
            until = match.end()
            break
    if begin == first > 0:  # no sentence begins nearby
        begin = max(text.find(" ", first, start) + 1, first)
    if until == last < len(text):
        until = max(text.rfind(" ", end, last), end)
    while begin < start and text[begin].isspace():
        begin += 1
    while until > end and text[until - 1].isspace():
        until -= 1
    return begin, until
