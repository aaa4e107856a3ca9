"""Answers as SQuAD's evaluator compares them (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case, delete ASCII punctuation, drop the words a, an and the, and collapse white space."""
    return " ".join(answer_tokens(text))


def answer_tokens(text: str) -> list[str]:
    """The words of ``normalize_answer``."""
    return _ARTICLES.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split()
