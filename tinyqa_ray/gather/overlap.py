"""Paragraphs that share text with others, whatever their titles say."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from itertools import islice

_WORDS = 8
"""Words in a row that two texts seldom share by chance."""
_MOST = 0.2
"""Share of a text's runs of words that may be found elsewhere: quotations and names of laws are."""


class Overlap:
    """Finds texts that repeat a part of known ones.

    Two data sets often hold the same article under other titles, in another version, or cut into other
    paragraphs. So runs of eight words are compared, without case, accents and marks.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Remember texts.

        Args:
            texts: those that others must not repeat.
        """
        self.known = {run for text in texts for run in _runs(text)}

    def __contains__(self, text: str) -> bool:
        """Whether more than a fifth of a text's runs of eight words stand in the known texts."""
        runs = _runs(text)
        return sum(run in self.known for run in runs) > _MOST * len(runs)


def _runs(text: str) -> list[int]:
    """Hashes of all runs of eight words; a shorter text is one run."""
    bare = "".join(
        letter if letter.isalnum() else " "
        for letter in unicodedata.normalize("NFKD", text).casefold()
        if not unicodedata.combining(letter)
    )
    words = bare.split()
    if not words:
        return []
    runs = zip(*(islice(words, first, None) for first in range(min(_WORDS, len(words)))), strict=False)
    return [hash(run) for run in runs]
