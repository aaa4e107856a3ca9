"""Logits → answers as in Haystack's reader: every window's spans of any length, ranked, overlaps dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windows
from tinyqa_ray.engines.engine import Logits
from tinyqa_ray.reader.spans import best_spans, sigmoid


class Found(NamedTuple):
    """A span of a document, which is given by its number, and the sum of the span's two logits."""

    logit: float
    document: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """The options of a run, checked; ``ExtractiveReader`` describes each."""

    top_k: int
    score_threshold: float | None
    max_seq_length: int
    stride: int
    max_batch_size: int | None
    answers_per_seq: int | None
    no_answer: bool
    overlap_threshold: float | None

    def __post_init__(self) -> None:
        lowest = {"top_k": 1, "max_seq_length": 1, "stride": 0, "max_batch_size": 1, "answers_per_seq": 1}
        for name, low in lowest.items():
            value = getattr(self, name)
            absent = value is None and name in ("max_batch_size", "answers_per_seq")
            if not absent and not (isinstance(value, int) and value >= low):
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}")
        # Besides the stride: a query of one token, a pair's four special tokens, a new token of the document.
        if self.max_seq_length < self.stride + 6:
            raise InputError(
                f"stride is {self.stride}, too much of max_seq_length {self.max_seq_length}; "
                "windows would not advance"
            )
        for name in ("score_threshold", "overlap_threshold"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise InputError(f"{name} is {value!r}; it must lie in [0, 1], or be None")


def candidates(
    windows: Windows, contents: Sequence[str], starts: Sequence[Logits], ends: Sequence[Logits], k: int
) -> tuple[list[Found], float]:
    """The k best spans of every window, and how sure the model is that no document holds an answer.

    Args:
        windows: W windows of one query with each of D documents.
        contents: D texts.
        starts: W arrays of start logits, one logit for each token of the window.
        ends: the same for end logits.
        k: spans of each window, at least 1.

    Returns:
        the spans in the order of the documents, and the smallest ``sigmoid(null - best)`` of a document,
        whose null score is the smallest of its windows; 1 when there is no span at all.
    """
    found: list[Found] = []
    null = np.full(len(windows.offsets), np.inf)
    best = np.full(len(windows.offsets), -np.inf)
    for window, (start, end) in enumerate(zip(starts, ends, strict=True)):
        document, begin = int(windows.pair[window]), windows.context_start[window]
        offsets = windows.window_offsets(window)
        part = slice(begin, begin + len(offsets))
        _, first, last, score = best_spans(
            start[None, part], end[None, part], len(offsets), k, overlapping=True
        )
        for a, b, logit in zip(
            offsets[first, 0].tolist(), offsets[last, 1].tolist(), score.tolist(), strict=True
        ):
            if contents[document][a:b].strip():  # tokens of spaces alone are no answer
                found.append(Found(logit, document, a, b))
                best[document] = max(best[document], logit)
        null[document] = min(null[document], start[0] + end[0])
    return found, sigmoid(float(np.min(null - best, initial=np.inf)))


def ranked(found: Sequence[Found], ids: Sequence[str], options: RunOptions) -> list[Found]:
    """The ``top_k`` best candidates that do not share too much with a better one of the same document.

    Args:
        found: candidates of all documents.
        ids: the id of each document; copies of a document have the same.
        options: ``top_k`` and ``overlap_threshold``.
    """
    kept: list[Found] = []
    for each in sorted(found, key=lambda each: -each.logit):
        rivals = (other for other in kept if ids[other.document] == ids[each.document])
        if options.overlap_threshold is None or all(
            overlap(each, other) <= options.overlap_threshold for other in rivals
        ):
            kept.append(each)
            if len(kept) == options.top_k:
                break
    return kept


def overlap(one: Found, other: Found) -> float:
    """Characters that two spans share, as a fraction of the shorter one."""
    shared = max(0, min(one.end, other.end) - max(one.start, other.start))
    return shared / min(one.end - one.start, other.end - other.start)
