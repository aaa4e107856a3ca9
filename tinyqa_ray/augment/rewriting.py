"""Answer-safe rewriting: new words for a paragraph whose answers stay where they can be found.

TinyBERT's data augmentation (arXiv 1909.10351, algorithm 1): every word may give way, with a fixed chance,
to one of its candidates. Here answers, stop-words, numbers, case, spacing and punctuation stay as they are.
"""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyqa_ray.core.errors import InputError

Span = tuple[int, int]
"""A half-open span of characters: [start, end)."""

Candidates = Sequence[str]
"""The words which may stand in for one word; empty means that the word stays."""

_Slots = list[tuple[Span, list[str]]]

RETRIES_PER_COPY = 10

_FUNCTION_WORDS = """
a an the and or but nor so yet if then else than because since while although though unless until whereas
whether i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she
her hers herself it its itself they them their theirs themselves one oneself
who whom whose which what when where why how that this these those there here
is am are was were be been being do does did done doing have has had having
can could may might must shall should will would ought cannot
as at by for from in into of off on onto out over to under up upon with within without about above across
after against along among around before behind below beneath beside besides between beyond despite down
during except inside like near outside per through throughout till toward towards unlike via
not no none neither either both each every all any some such same other another few more most less least
many much several only own just also too very even still again ever never now once
"""
STOP_WORDS: frozenset[str] = frozenset(_FUNCTION_WORDS.split())
"""English function words, in lower case; they are never replaced."""


class _Shapes(dict[int, str]):
    """Code point → ``a`` (letter), ``m`` (mark), ``n`` (number, underscore), ``'`` (apostrophe) or blank."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        if character in "'\N{RIGHT SINGLE QUOTATION MARK}":
            shape = "'"
        elif character == "_":
            shape = "n"
        else:
            shape = {"L": "a", "M": "m", "N": "n"}.get(unicodedata.category(character)[0], " ")
        self[code_point] = shape
        return shape


_SHAPES = _Shapes()
_RUN = re.compile(r"[an][amn]*(?:'[an][amn]*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What may change, and into what; answers never change."""

    stop_words: bool = False
    """Whether stop-words, words of one letter and words with an apostrophe may change."""
    itself: bool = False
    """Whether the word itself is among its candidates, so that fewer words change than are drawn."""
    distinct: bool = True
    """Whether copies differ from the original and from one another where the text allows."""


SAFE = Rules()
HAYSTACK = Rules(stop_words=True, itself=True, distinct=False)
"""Draws as Haystack 1's ``augment_squad``, but keeps answers, case, spacing and the original intact."""


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a paragraph, found once and used in every step."""

    context: str
    """The paragraph, n characters."""
    keep: Sequence[Span]
    """Half-open character spans [start, end) of the answers; they may overlap or be empty."""
    spans: Sequence[Span]
    """Spans of all words, see ``word_spans``."""
    may_change: Sequence[bool]
    """Whether each word may change, see ``replaceable``."""
    rules: Rules

    @classmethod
    def of(cls, context: str, keep: Sequence[Span], rules: Rules = SAFE) -> Words:
        """Find the words.

        Raises:
            InputError: a kept span does not lie in the text.
        """
        spans = word_spans(context)
        return cls(context, keep, spans, replaceable(context, spans, keep, rules), rules)

    @property
    def changeable(self) -> list[Span]:
        """The words that may change."""
        return [span for span, may in zip(self.spans, self.may_change, strict=True) if may]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewriting:
    """One copy of a paragraph."""

    context: str
    """The new text."""
    starts: tuple[int, ...]
    """Where each kept span starts in the new text; its length and text are as before."""
    replaced: int
    """Words that changed."""
    replaceable: int
    """Words that could have changed: allowed to, and with a candidate other than themselves."""


def word_spans(context: str) -> list[Span]:
    """Find the words which augmentation sees.

    A word is a run of letters of any script with their combining marks; an inner apostrophe belongs to it
    ("don't"), a hyphen separates ("well-known" is two words). A run with a digit or an underscore ("B2B",
    "1990s", "snake_case") is no word.

    Args:
        context: the text, n characters.

    Returns:
        Half-open character spans in order; they never touch one another.
    """
    shapes = context.translate(_SHAPES)
    return [run.span() for run in _RUN.finditer(shapes) if "n" not in run.group()]


def replaceable(context: str, words: Sequence[Span], keep: Sequence[Span], rules: Rules = SAFE) -> list[bool]:
    """Say which words may change.

    Words that share a character with a kept span (or have an empty one strictly inside) may not. Neither may
    stop-words, words of one letter and words with an apostrophe, unless the rules let them.

    Args:
        context: the text, n characters.
        words: spans of its words.
        keep: spans that must survive; they may overlap and come in any order.
        rules: what else must stay.

    Returns:
        Whether each word may change, in order.

    Raises:
        InputError: a kept span does not lie in the text.
    """
    for start, end in keep:
        if not 0 <= start <= end <= len(context):
            raise InputError(
                f"the span [{start}, {end}) to keep does not lie in its text of {len(context)} characters; "
                "correct the answer's start"
            )

    def may_change(start: int, end: int) -> bool:
        word = context[start:end]
        shape = word.translate(_SHAPES)
        plain = shape.count("a") > 1 and "'" not in shape and word.lower() not in STOP_WORDS
        return (plain or rules.stop_words) and not any(
            kept_start < end and start < kept_end for kept_start, kept_end in keep
        )

    return [may_change(start, end) for start, end in words]


def take_case(candidate: str, word: str) -> str:
    """Write ``candidate`` in the case of ``word``: Title, UPPER or lower; else ("iPod") leave it as it is."""
    head, tail = word[:1], word[1:]
    if head.istitle() and (not tail or tail.islower()):
        return candidate.capitalize()
    if word.isupper():
        return candidate.upper()
    if word.islower():
        return candidate.lower()
    return candidate


def rewrite(
    words: Words, candidates: Sequence[Candidates], rng: np.random.Generator, replace_probability: float
) -> Rewriting:
    """Replace words of a paragraph by their candidates, leaving every kept span untouched.

    The inner loop of algorithm 1 of TinyBERT (arXiv 1909.10351). Each word that may change does so with
    ``replace_probability``, to a candidate drawn uniformly from the distinct ones, in the word's case. A kept
    span has the same text and length at its new start.

    Args:
        words: the words of the paragraph.
        candidates: one entry per word, in order; empty means that the word stays.
        rng: the only source of chance; equal states and arguments give equal results.
        replace_probability: in [0, 1].

    Returns:
        The new text and, for each kept span, its new start.

    Raises:
        InputError: the probability is outside [0, 1], or the candidates are not one entry per word.
    """
    _check_probability(replace_probability)
    return _draw(words, _slots(words, candidates), rng, replace_probability)


def copies(
    words: Words,
    candidates: Sequence[Candidates],
    *,
    n: int,
    replace_probability: float,
    seed: Sequence[int],
) -> list[Rewriting]:
    """Rewrite a paragraph ``n`` times (the outer loop of algorithm 1 of TinyBERT).

    Copies differ from the original and from one another where the text allows: a copy seen before is drawn
    again, at most ``RETRIES_PER_COPY`` times. Copy i draws from its own generator, ``[*seed, i]``: asking for
    more copies never changes the first ones.

    Args:
        words: the words of the paragraph.
        candidates: as in ``rewrite``.
        n: how many copies; always that many come back.
        replace_probability: in [0, 1].
        seed: whole numbers, 0 or more, that name the paragraph; of equal length for all paragraphs.

    Returns:
        ``n`` rewritings.

    Raises:
        InputError: as in ``rewrite``, or a negative ``n``.
    """
    if n < 0:
        raise InputError(f"copies is {n}; it must be 0 or more")
    _check_probability(replace_probability)
    slots = _slots(words, candidates)
    most_texts = math.prod(1 + len(options) for _, options in slots)
    seen = {words.context}
    result = []
    for index in range(n):
        rng = np.random.default_rng([*seed, index])
        for _ in range(1 + RETRIES_PER_COPY):
            rewriting = _draw(words, slots, rng, replace_probability)
            if not words.rules.distinct or rewriting.context not in seen or len(seen) >= most_texts:
                break
        seen.add(rewriting.context)
        result.append(rewriting)
    return result


def _check_probability(replace_probability: float) -> None:
    if not 0.0 <= replace_probability <= 1.0:
        raise InputError(f"replace_probability is {replace_probability}; it must lie in [0, 1]")


def _slots(words: Words, candidates: Sequence[Candidates]) -> _Slots:
    """Pair each word that can change with its distinct options, already in its case."""
    if len(candidates) != len(words.spans):
        raise InputError(
            f"candidates were given for {len(candidates)} words, the text has {len(words.spans)}; "
            "give one entry for each of word_spans(context)"
        )
    slots: _Slots = []
    for span, may_change, offered in zip(words.spans, words.may_change, candidates, strict=True):
        word = words.context[slice(*span)]
        if may_change and (options := _options(word, offered)):
            slots.append((span, [word, *options] if words.rules.itself else options))
    return slots


def _options(word: str, offered: Candidates) -> list[str]:
    """Put the candidates in the word's case; drop repeats and those which are the word itself."""
    # Compared in the word's case, which can make them equal: dotless i in upper case is I.
    cased = dict.fromkeys(take_case(other, word) for other in offered)
    return [option for option in cased if option.casefold() != word.casefold()]


def _draw(words: Words, slots: _Slots, rng: np.random.Generator, replace_probability: float) -> Rewriting:
    """Draw one copy. Two numbers per slot are always drawn, so that no choice changes later draws."""
    context = words.context
    chances, choices = rng.random((2, len(slots)))
    pieces: list[str] = []
    copied = 0
    ends: list[int] = []
    shifts = [0]
    for ((start, end), options), chance, choice in zip(slots, chances, choices, strict=True):
        if chance >= replace_probability:
            continue
        new = options[int(choice * len(options))]
        if new == context[start:end]:
            continue
        pieces += (context[copied:start], new)
        copied = end
        ends.append(end)
        shifts.append(shifts[-1] + len(new) - (end - start))
    pieces.append(context[copied:])
    return Rewriting(
        context="".join(pieces),
        starts=tuple(start + shifts[bisect_right(ends, start)] for start, _ in words.keep),
        replaced=len(ends),
        replaceable=len(slots),
    )
