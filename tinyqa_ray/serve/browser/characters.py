"""What a WordPiece tokenizer does with each character: read off the tokenizer, for the page's JavaScript."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
_BETWEEN = "0"
"""Stands between characters that are normalised in one call; nothing but itself becomes a zero."""
_AT_ONCE = 4096


def characters(normalizer: Any, pre_tokenizer: Any) -> dict[str, Any]:
    """The table of all characters of Unicode.

    Its rules work on one character at a time, so a table holds all of them. What is a letter, an accent or
    punctuation differs between versions of Unicode, so a browser's own tables would not do.

    Args:
        normalizer: ``BertNormalizer`` of a tokenizer.
        pre_tokenizer: its ``BertPreTokenizer``.

    Returns:
        ``gone``, ``blank`` (becomes a space), ``apart`` (gets spaces around it), ``decomposed`` (Hangul
        syllables, into their letters), ``punctuation`` (a word of its own): code points, as flat lists of
        first and end of ranges. ``mapped``: what becomes of other characters that do not stay as they are.
    """
    after = _normalised(normalizer)
    mapped, decomposed = {}, []
    for point, made in after.items():
        letter = chr(point)
        if made in ("", " ", letter, f" {letter} "):
            continue
        if 0xAC00 <= point <= 0xD7A3 and made == unicodedata.normalize("NFD", letter):
            decomposed.append(point)
        else:
            mapped[letter] = made
    return {
        "gone": _ranges(point for point, made in after.items() if made == ""),
        "blank": _ranges(point for point, made in after.items() if made == " "),
        "apart": _ranges(point for point, made in after.items() if made == f" {chr(point)} "),
        "decomposed": _ranges(decomposed),
        "punctuation": _ranges(_punctuation(pre_tokenizer)),
        "mapped": mapped,
    }


def _normalised(normalizer: Any) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for first in range(0, len(_POINTS), _AT_ONCE):
        points = [point for point in _POINTS[first : first + _AT_ONCE] if chr(point) != _BETWEEN]
        made = normalizer.normalize_str(_BETWEEN.join(map(chr, points))).split(_BETWEEN)
        found |= dict(zip(points, made, strict=True))
    return found


def _punctuation(pre_tokenizer: Any) -> list[int]:
    """Code points that are words of their own between two letters."""
    found = []
    for first in range(0, len(_POINTS), _AT_ONCE):
        points = _POINTS[first : first + _AT_ONCE]
        for _, (start, end) in pre_tokenizer.pre_tokenize_str("a" + "a".join(map(chr, points)) + "a"):
            if end - start == 1 and start % 2:
                found.append(points[start // 2])
    return found


def _ranges(points: Iterable[int]) -> list[int]:
    """First and end of each run of code points in order, one after the other."""
    found: list[int] = []
    for point in points:
        if found and found[-1] == point:
            found[-1] += 1
        else:
            found += [point, point + 1]
    return found
