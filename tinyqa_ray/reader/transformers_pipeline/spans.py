"""Logits → answers by the rules of transformers' question-answering pipeline (up to 5.2), in numpy.

The rules differ from those of ``spans``: probabilities are a softmax over each window, answers may overlap,
and equal texts become one answer, which gets the sum of their scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.datasets.windows import Windows

Float = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

_MASKED = -1e4
"""Logit of the tokens that take no part in the softmax."""


@dataclass(frozen=True, slots=True)
class WindowSpans:
    """The likeliest spans of B windows, best first, and the chance that a window holds no answer.

    Shapes:
        first, last, log_probability: ``(B, k)``. Tokens count from the window's first context token;
            ``log_probability`` is -inf where a window has fewer spans.
        null: ``(B,)``.
    """

    first: Index
    last: Index
    log_probability: Float
    null: Float


def sharing_tokens(windows: Windows, batch: Index, tokens: int, cls_id: int | None) -> Mask:
    """Which tokens of some windows take part in the softmax.

    Args:
        windows: W windows.
        batch: numbers of B of them.
        tokens: width T of the batch's logits.
        cls_id: the token that stands for no answer when it opens a window; None when there is none.

    Returns:
        ``(B, T)``, true for the context's tokens and an opening ``cls_id``.
    """
    position = np.arange(tokens)
    begin, count = windows.context_start[batch, None], windows.context_tokens[batch, None]
    shares: Mask = (position >= begin) & (position < begin + count)
    shares[:, 0] |= np.array([windows.input_ids[window][0] == cls_id for window in batch])
    return shares


def top_spans(
    start_logits: NDArray[np.float32],
    end_logits: NDArray[np.float32],
    shares: Mask,
    context_start: NDArray[np.int32],
    *,
    max_answer_tokens: int,
    k: int,
) -> WindowSpans:
    """The k likeliest spans ``start <= end < start + max_answer_tokens`` of each window.

    The probability of a span is that of its start times that of its end, each from a softmax over
    the tokens in ``shares``; that of no answer takes the first token as both start and end.

    Args:
        start_logits: ``(B, T)``.
        end_logits: ``(B, T)``.
        shares: ``(B, T)``, see ``sharing_tokens``.
        context_start: position of the first context token, ``(B,)``.
        max_answer_tokens: longest span, in tokens.
        k: spans of each window; fewer where the whole batch has fewer.
    """
    start, end = _log_softmax(start_logits, shares), _log_softmax(end_logits, shares)
    null = np.exp(start[:, 0] + end[:, 0])
    shares = shares & (np.arange(shares.shape[1]) >= context_start[:, None])
    # Every context is moved to column 0, so that questions of any length stay out of the search.
    width = max(1, int(shares.sum(1).max()))
    column = context_start[:, None] + np.arange(width)
    inside = column < shares.shape[1]
    column = np.where(inside, column, 0)
    start, end = (
        np.where(inside, np.take_along_axis(np.where(shares, side, -np.inf), column, 1), -np.inf)
        for side in (start, end)
    )
    lengths = min(max_answer_tokens, width)
    beyond = np.full((len(end), lengths - 1), -np.inf)
    ends = np.lib.stride_tricks.sliding_window_view(np.concatenate([end, beyond], 1), lengths, axis=1)
    # Sums of logarithms do not underflow, as products of small probabilities would.
    scores = (start[:, :, None] + ends).reshape(len(start), -1)
    k = min(k, scores.shape[1])
    top = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    top.sort(axis=1)  # of equal spans the earlier, then the shorter, comes first
    best = np.argsort(-np.take_along_axis(scores, top, 1), axis=1, kind="stable")
    top = np.take_along_axis(top, best, 1)
    first, more = np.divmod(top, lengths)
    return WindowSpans(first, first + more, np.take_along_axis(scores, top, 1), null)


def character_spans(
    windows: Windows, window: int, first: Index, last: Index, *, align_to_words: bool
) -> tuple[Index, Index]:
    """Token spans of one window as half-open character spans of its context.

    Args:
        windows: W windows, with ``words`` if ``align_to_words``.
        window: the number of one of them.
        first: first tokens, ``(n,)``, counted from the window's first context token.
        last: last tokens, ``(n,)``.
        align_to_words: widen each span to whole words, as far as the window holds them; a span whose first
            or last token belongs to no word stays as it is.

    Returns:
        starts and ends, ``(n,)`` each.
    """
    offsets = windows.window_offsets(window)
    if align_to_words:
        assert windows.words is not None, "windows were cut without words"
        shift = windows.first_token[window]
        words = windows.words[windows.pair[window]][shift : shift + len(offsets)]
        edges = np.concatenate([[0], np.flatnonzero(np.diff(words)) + 1, [len(words)]])
        named = (words[first] >= 0) & (words[last] >= 0)
        first = np.where(named, edges[np.searchsorted(edges, first, side="right") - 1], first)
        last = np.where(named, edges[np.searchsorted(edges, last, side="right")] - 1, last)
    return offsets[first, 0].astype(np.int64), offsets[last, 1].astype(np.int64)


def pooled(
    context: str, found: Iterable[tuple[int, int, float]], null: float | None, top_k: int
) -> list[dict[str, Any]]:
    """The answers to one question from the spans of all windows of its context.

    Spans with the same text, letter case aside, become one answer: it has the place of the first and the
    sum of their scores (which may exceed 1).

    Args:
        context: the text.
        found: (start, end, probability) of spans, window by window, each window's best first.
        null: score of the empty answer; None when an answer must be given.
        top_k: answers wanted.

    Returns:
        at most ``top_k`` of ``{"score", "start", "end", "answer"}``, best first; never empty: without
        any span, the empty answer with score ``null``, or 0.
    """
    answers: dict[str, dict[str, Any]] = {}
    for start, end, score in found:
        text = context[start:end]
        same = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
        same["score"] += score
    made = list(answers.values())
    if null is not None or not made:
        made.append({"score": null or 0.0, "start": 0, "end": 0, "answer": ""})
    return sorted(made, key=lambda answer: -answer["score"])[:top_k]


def _log_softmax(logits: NDArray[np.float32], shares: Mask) -> Float:
    """Log probabilities of each row, by a softmax over the tokens in ``shares``; ``(B, T)``."""
    masked = np.where(shares, logits.astype(np.float64), _MASKED)
    masked -= masked.max(1, keepdims=True)
    masked -= np.log(np.exp(masked).sum(1, keepdims=True))
    return masked
