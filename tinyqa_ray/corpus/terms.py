"""Text → the terms that BM25 compares, the same for passages and questions."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

import Stemmer
from bm25s.tokenization import Tokenizer

from tinyqa_ray.core.errors import InputError

_LONGEST = 64
"""Most letters of a word; a longer run (base64, DNA) is read as several words."""
_UNSPACED = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
"""Han and kana, which put no space between words: each character counts as a word."""


class Analyzer:
    """Finds words and makes terms of them.

    A word is a run of letters, digits and the marks on them, in any script. Its term is NFKC-normalised,
    case-folded and, with a language, stemmed; a stop word of the language has none.
    """

    def __init__(self, language: str | None) -> None:
        """Make an analyzer.

        Args:
            language: a Snowball stemmer's language, such as 'english'; with None, words are not stemmed and
                stop words are kept.

        Raises:
            InputError: there is no such stemmer.
        """
        known = Stemmer.algorithms()
        if language is not None and language not in known:
            raise InputError(f"language is {language!r}; it must be none or one of {', '.join(known)}")
        self._stem = Stemmer.Stemmer(language).stemWord if language else str
        self._stop_words = _stop_words(language)

    def words(self, text: str) -> Iterator[str]:
        """The words of a text, in order."""
        return (match[0] for match in _pattern().finditer(text))

    def starts(self, text: str) -> Iterator[int]:
        """Where each word of a text starts, in characters."""
        return (match.start() for match in _pattern().finditer(text))

    def term(self, word: str) -> str | None:
        """The term of a word; None for a stop word."""
        folded = unicodedata.normalize("NFKC", word).casefold()
        return None if folded in self._stop_words else str(self._stem(folded))

    def terms(self, text: str) -> list[str]:
        """The terms of a text, in order and as often as they occur."""
        return [term for term in map(self.term, self.words(text)) if term is not None]


def _stop_words(language: str | None) -> frozenset[str]:
    """Words of a language that do not tell what a question is about; empty if bm25s has no list of them."""
    # bm25s's shorter English list lacks "what", "who", "did", which most questions hold.
    try:
        return frozenset(Tokenizer(stopwords="english_plus" if language == "english" else language).stopwords)
    except ValueError:  # bm25s does not know the language
        return frozenset()


@functools.cache
def _pattern() -> re.Pattern[str]:
    # Python's \w leaves out combining marks, and would cut Hindi, or a decomposed é, in the middle of a word.
    letter, mark = rf"[^\W{_UNSPACED}]", f"[{_marks()}]"
    spaced = f"{letter}{{1,{_LONGEST}}}(?:{mark}{letter}{{0,{_LONGEST}}}){{0,{_LONGEST}}}"
    return re.compile(f"{spaced}|[{_UNSPACED}]{mark}{{0,{_LONGEST}}}")


def _marks() -> str:
    """Combining marks as ranges of a character class."""
    # Beyond these planes there are variation selectors only.
    marks = [code for code in range(0x20000) if unicodedata.category(chr(code))[0] == "M"]
    firsts = [code for code in marks if unicodedata.category(chr(code - 1))[0] != "M"]
    lasts = [code for code in marks if unicodedata.category(chr(code + 1))[0] != "M"]
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in zip(firsts, lasts, strict=True))
