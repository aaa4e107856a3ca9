"""Logits → answer spans, in numpy over whole batches; no Ray, no model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.datasets.windows import Windows

Float = NDArray[np.float32]
Index = NDArray[np.int64]

_ROWS = 64
"""Windows decoded at once: bounds the memory of the (windows, lengths, starts) score block."""
_MOST_OF_A_WINDOW = 256
_JOINED = re.compile(
    r"[^\S\n\r\u2028\u2029]*[-\u2010\u2011'\"\u2018-\u201d\u00ab\u00bb]?[^\S\n\r\u2028\u2029]*"
)
"""What may stand between two parts of one expression: spaces, a hyphen, a quotation mark; no other sign, no
word, and no new line."""
_JOINED_CHARACTERS = 8
"""Longest such text."""


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open character span of a context and its score, the sum of its two logits."""

    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model read of one pair: its best spans, best first, and its null score.

    ``null_score`` is the smallest over the pair's windows; it is compared with the best span over all of
    them (the official rule of BERT's SQuAD 2.0 evaluation).
    """

    spans: tuple[Span, ...]
    null_score: float

    @property
    def na_prob(self) -> float:
        """``sigmoid(null - best)``; 1 when there is no span at all."""
        return sigmoid(self.null_score - self.spans[0].score) if self.spans else 1.0


def sigmoid(x: float) -> float:
    """The logistic function, without overflow; it stays above 0 for very negative ``x`` too."""
    small = math.exp(-abs(x))
    return (1.0 if x >= 0 else small) / (1.0 + small)


def readings(
    windows: Windows,
    start_logits: Sequence[Float],
    end_logits: Sequence[Float],
    *,
    max_answer_tokens: int,
    top_k: int = 1,
    contexts: Sequence[str] | None = None,
    least_margin: float = -math.inf,
) -> list[Reading]:
    """The best spans of every pair.

    Args:
        windows: W windows of P pairs.
        start_logits: W arrays of ``(tokens of the window,)``.
        end_logits: the same.
        max_answer_tokens: longest span, in tokens.
        top_k: spans kept of each pair; fewer where the context holds fewer.
        contexts: P texts, to leave out fragments: spans right beside a better one, see ``beside``. When not
            given, spans are only kept from overlapping. A window of which most of the best spans are
            fragments may give fewer spans than it holds.
        least_margin: besides the best one, only spans whose ``span - null`` is at least this are kept.

    Returns:
        P readings.
    """
    of_a_window = top_k if top_k == 1 or contexts is None else min(2 * top_k + 4, _MOST_OF_A_WINDOW)
    pairs = len(windows.offsets)
    found: list[list[tuple[Span, int]]] = [[] for _ in range(pairs)]
    null = np.full(pairs, np.inf, dtype=np.float64)
    np.minimum.at(
        null, windows.pair, np.array([s[0] + e[0] for s, e in zip(start_logits, end_logits, strict=True)])
    )
    order = np.argsort(windows.context_tokens, kind="stable")
    for rows in np.array_split(order, range(_ROWS, len(order), _ROWS)):
        starts = _context_logits(windows, start_logits, rows)
        for i, w in enumerate(rows):
            # A byte-level token of spaces alone has no characters in its span, so no answer starts there.
            shown = windows.window_offsets(w)
            starts[i, : len(shown)][shown[:, 0] >= shown[:, 1]] = -np.inf
        ends = _context_logits(windows, end_logits, rows)
        window, first, last, score = best_spans(
            starts, ends, max_answer_tokens, of_a_window, least=least_margin + null[windows.pair[rows]]
        )
        for w, a, b, value in zip(rows[window], first, last, score, strict=True):
            offsets = windows.offsets[windows.pair[w]]
            token = windows.first_token[w]
            span = Span(int(offsets[token + a, 0]), int(offsets[token + b, 1]), float(value))
            found[windows.pair[w]].append((span, int(b - a)))
    texts = [None] * pairs if contexts is None or top_k == 1 else contexts
    return [
        Reading(_distinct(spans, top_k, float(score) + least_margin, text), float(score))
        for spans, score, text in zip(found, null, texts, strict=True)
    ]


def beside(context: str, start: int, end: int, other_start: int, other_end: int) -> bool:
    """Whether two spans that do not overlap are parts of one expression, such as "almost" and "six hours".

    Only spaces, a hyphen or a quotation mark stand between them. Items of a list ("Ann, Bob and Cy") are
    not beside each other, nor are two lines.
    """
    first, last = (end, other_start) if end <= other_start else (other_end, start)
    return last - first <= _JOINED_CHARACTERS and _JOINED.fullmatch(context, first, last) is not None


def best_spans(
    starts: Float,
    ends: Float,
    max_answer_tokens: int,
    k: int,
    *,
    overlapping: bool = False,
    least: NDArray[np.float64] | None = None,
) -> tuple[Index, Index, Index, Float]:
    """The k best spans ``start <= end < start + max_answer_tokens`` of each row.

    Args:
        starts: start logits ``(R, T)``, -inf where no answer may start.
        ends: end logits ``(R, T)``.
        max_answer_tokens: longest span, in tokens.
        k: spans of each row; fewer where the row has fewer.
        overlapping: whether spans may share tokens.
        least: for spans that do not, ``(R,)``: what the score of all but a row's best must reach.

    Returns:
        row, first token, last token and score of each span, each row's best first; of equal
        scores the shorter span comes first, then the earlier.
    """
    rows, tokens = starts.shape
    if tokens == 0:
        empty = np.empty(0, dtype=np.int64)
        return empty, empty, empty, np.empty(0, dtype=np.float32)
    lengths = min(max_answer_tokens, tokens)
    scores = np.full((rows, lengths, tokens), -np.inf, dtype=np.float32)
    for more in range(lengths):
        np.add(starts[:, : tokens - more], ends[:, more:], out=scores[:, more, : tokens - more])
    top, value = _top(scores, k) if overlapping else _top_apart(scores, min(k, tokens), least)
    row, column = np.nonzero(np.isfinite(value))
    extra, first = np.divmod(top[row, column], tokens)
    return row, first, first + extra, value[row, column]


def _top(scores: Float, k: int) -> tuple[Index, Float]:
    """The k best spans of each row of ``(R, lengths, starts)``: places in the flattened row, and scores."""
    flat = scores.reshape(len(scores), -1)
    k = min(k, flat.shape[1])
    top = np.argpartition(flat, flat.shape[1] - k, axis=1)[:, -k:]
    top.sort(axis=1)
    value = np.take_along_axis(flat, top, 1)
    best = np.argsort(-value, axis=1, kind="stable")
    return np.take_along_axis(top, best, 1), np.take_along_axis(value, best, 1)


def _top_apart(scores: Float, k: int, least: NDArray[np.float64] | None) -> tuple[Index, Float]:
    """Like ``_top``, for spans that share no token; overwrites ``scores``."""
    rows, lengths, tokens = scores.shape
    top, value = np.zeros((rows, k), dtype=np.int64), np.full((rows, k), -np.inf, dtype=np.float32)
    begin = np.arange(tokens)
    end = begin + np.arange(lengths)[:, None]
    flat = scores.reshape(rows, -1)
    for n in range(k):
        if n:
            extra, first = np.divmod(top[:, n - 1, None, None], tokens)
            scores[(begin <= first + extra) & (end >= first)] = -np.inf
        top[:, n] = flat.argmax(1)
        found = np.take_along_axis(flat, top[:, n, None], 1)[:, 0]
        value[:, n] = found if least is None or n == 0 else np.where(found >= least, found, -np.inf)
        if not np.isfinite(value[:, n]).any():
            break
    return top, value


def _context_logits(windows: Windows, logits: Sequence[Float], rows: Index) -> Float:
    """Logits of the context tokens of some windows, ``(rows, most context tokens)``, padded with -inf."""
    block = np.full((len(rows), int(windows.context_tokens[rows].max())), -np.inf, dtype=np.float32)
    for i, w in enumerate(rows):
        begin, count = windows.context_start[w], windows.context_tokens[w]
        block[i, :count] = logits[w][begin : begin + count]
    return block


def _distinct(
    spans: list[tuple[Span, int]], top_k: int, least: float, context: str | None
) -> tuple[Span, ...]:
    """The best spans, each with its tokens after the first, without overlap.

    Of equal ones the one of fewer tokens comes first, then the earlier: the order of ``best_spans``, so that
    the best span does not depend on how many are kept.

    A span beside a better one is a fragment of the same expression. It is left out, and so is what stands
    beside the two together: with "six hours" go "almost", and then "for".
    """
    kept: list[Span] = []
    regions = Regions()
    for span, _ in sorted(spans, key=lambda each: (-each[0].score, each[1], each[0].start, each[0].end)):
        if len(kept) == top_k or (kept and span.score < least):
            break
        if span.start < span.end and regions.take(span.start, span.end, context):
            kept.append(span)
    return tuple(kept)


class Regions:
    """The characters of a text that answers have taken, with the fragments beside them."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = []

    @property
    def kept(self) -> int:
        """How many answers there are."""
        return len(self._taken)

    def take(self, start: int, end: int, context: str | None) -> bool:
        """Take the characters [start, end) for a further answer, unless they belong to a better one.

        Args:
            start: first character.
            end: one past the last.
            context: the text; None to look only at overlaps.
        """
        if any(start < last and first < end for first, last in self._taken):
            return False
        for place, (first, last) in enumerate(self._taken):
            if context is not None and beside(context, start, end, first, last):
                self._taken[place] = min(first, start), max(last, end)
                return False
        self._taken.append((start, end))
        return True
