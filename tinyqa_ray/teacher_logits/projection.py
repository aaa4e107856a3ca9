"""Logits of a teacher that reads other tokens than the student, carried over by characters.

The teacher reads each window of the student as text: the question, and the characters of the context that the
window shows. The logit of each of its context tokens then goes to the student's token that holds the token's
first character (start logits) or its last one (end logits). Where several fall on one token, their
probabilities are summed: the log-sum-exp of the logits. The null logit goes to the null position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.datasets.windows import Int, Pair, Windower, Windows
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.teacher_logits.half_precision import FiniteTeacher, NotFiniteError

Logits = NDArray[np.float32]
Index = NDArray[np.int64]

_MOST_TOKENS_PER_TOKEN = 4
"""Teachers' windows are at most this many times as long as the student's, if the teacher reads so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projected:
    """Logits of W windows of the student, from a teacher of another vocabulary.

    Shapes:
        starts, ends: one array ``(tokens,)`` per window.
        start_on_border, end_on_border: ``(W,)``, the share of the probability of all starts in the context
            that fell on the first character of a student's token, and of all ends on the last character of
            one. NaN where the window shows no text.
    """

    starts: list[Logits]
    ends: list[Logits]
    start_on_border: NDArray[np.float64]
    end_on_border: NDArray[np.float64]


class Projector:
    """Runs a teacher of another vocabulary over the texts of a student's windows."""

    def __init__(
        self, teacher: FiniteTeacher | Engine, tokenizer: Any, reach: int, config: WindowConfig
    ) -> None:
        """Take a teacher.

        Args:
            teacher: what runs it.
            tokenizer: its own tokenizer.
            reach: most tokens that it reads in one window.
            config: sizes of the student's windows. The teacher cuts questions after as many tokens. A text
                that does not fit into one of its windows is read in several.
        """
        tokens = min(reach, _MOST_TOKENS_PER_TOKEN * config.max_seq_len)
        question = min(config.max_query_len, tokens // 2)
        overlap = min(config.doc_stride, max(0, (tokens - question - 4) // 2 - 1))
        sizes = WindowConfig(max_seq_len=tokens, max_query_len=question, doc_stride=overlap)
        self.teacher = teacher
        self.windower = Windower(tokenizer, sizes)

    def logits(self, windows: Windows, pairs: Sequence[Pair], max_batch_tokens: int | None) -> Projected:
        """The teacher's logits for a student's windows.

        Args:
            windows: W windows of the student.
            pairs: the questions and contexts that they were cut from.
            max_batch_tokens: tokens of one forward, padding included; the engine's own when not given.

        Raises:
            NotFiniteError: the teacher's logits are not finite; names the student's windows.
        """
        shown = [shown_characters(windows, window) for window in range(len(windows))]
        texts = [
            (pairs[pair][0], pairs[pair][1][first:last])
            for pair, (first, last) in zip(windows.pair, shown, strict=True)
        ]
        read = self.windower.windows(texts)
        try:
            read_starts, read_ends = self.teacher.logits(read, max_batch_tokens)
        except NotFiniteError as error:
            raise NotFiniteError(str(error), [int(read.pair[window]) for window in error.windows]) from None
        parts: list[list[int]] = [[] for _ in texts]
        for number, window in enumerate(read.pair):
            parts[window].append(number)
        starts, ends, borders = [], [], []
        for window, (first, _) in enumerate(shown):
            mine = windows.window_offsets(window) - first
            its = read.offsets[window]
            null, start, end = _joined(read, parts[window], read_starts, read_ends)
            firsts, lasts = targets(mine, its)
            place = int(windows.context_start[window])
            length = len(windows.input_ids[window])
            starts.append(project(start, place + firsts, null[0], length))
            ends.append(project(end, place + lasts, null[1], length))
            borders.append(
                (
                    _share(start, mine[firsts, 0] == its[:, 0]) if len(its) and len(mine) else math.nan,
                    _share(end, mine[lasts, 1] == its[:, 1]) if len(its) and len(mine) else math.nan,
                )
            )
        on_border = np.array(borders, np.float64).reshape(-1, 2)
        return Projected(
            starts=starts, ends=ends, start_on_border=on_border[:, 0], end_on_border=on_border[:, 1]
        )


def shown_characters(windows: Windows, window: int) -> tuple[int, int]:
    """First and last character (exclusive) of the context that a window shows; equal if it shows none."""
    offsets = windows.window_offsets(window)
    if not len(offsets) or offsets[-1, 1] <= offsets[0, 0]:
        return 0, 0
    return int(offsets[0, 0]), int(offsets[-1, 1])


def targets(student: Int, teacher: Int) -> tuple[Index, Index]:
    """For each token of the teacher, the student's tokens that its start and its end go to.

    Args:
        student: half-open character spans of S tokens without white space at their ends, ``(S, 2)``, in
            order.
        teacher: those of T tokens, over the same characters, ``(T, 2)``.

    Returns:
        numbers of the student's tokens, ``(T,)`` each, never falling: the one that holds the token's first
        character, or else the next one; and the one that holds its last character, or else the one before.
        Of tokens that share their characters (the bytes of an emoji) the first takes the start and the last
        the end.
    """
    most = max(len(student) - 1, 0)
    firsts = np.searchsorted(student[:, 1], teacher[:, 0], side="right")
    lasts = np.searchsorted(student[:, 0], teacher[:, 1], side="left") - 1
    return np.clip(firsts, 0, most), np.clip(lasts, 0, most)


def project(logits: Logits, places: Index, null: float, length: int) -> Logits:
    """Logits of a window's tokens, from those of a teacher's context tokens.

    Args:
        logits: of the teacher's context tokens, ``(T,)``.
        places: the window's token that each goes to, ``(T,)``, none of them 0.
        null: the teacher's null logit, which goes to token 0.
        length: tokens of the window.

    Returns:
        ``(length,)``. Tokens to which nothing goes (question, special tokens, those within a word) share what
        the least likely logit of the teacher has: all of them together are as likely as it is.
    """
    made = np.full(length, -np.inf, np.float32)
    made[0] = null
    np.logaddexp.at(made, places, logits)
    empty = np.isneginf(made)
    lowest = min(float(logits.min(initial=null)), float(null))
    made[empty] = lowest - math.log(max(int(empty.sum()), 1))
    return made


def mean_of_distributions(teachers: Sequence[Logits], lengths: Int) -> Logits:
    """The mean of several teachers' distributions over each window's tokens, as logits.

    A mean of logits would rule out a token on which only one of the teachers can begin. The log-normalisers
    are averaged and added again, so that logits stay comparable between the windows of a question; of one
    teacher, its own logits come back.

    Args:
        teachers: logits of each teacher, all windows end to end, ``(tokens of all windows,)``.
        lengths: tokens of each window, ``(W,)``.
    """
    borders = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    stacked = np.stack(teachers).astype(np.float64)
    normalisers = np.logaddexp.reduceat(stacked, borders, axis=1) if len(lengths) else np.zeros((1, 0))
    probabilities = stacked - np.repeat(normalisers, lengths, axis=1)
    mean = np.logaddexp.reduce(probabilities, axis=0) - math.log(len(teachers))
    made: Logits = (mean + np.repeat(normalisers.mean(axis=0), lengths)).astype(np.float32)
    return made


def _joined(
    read: Windows, parts: Sequence[int], starts: Sequence[Logits], ends: Sequence[Logits]
) -> tuple[tuple[float, float], Logits, Logits]:
    """Null logits, and start and end logits of all context tokens of a text that a teacher read in parts.

    A token that stands in several parts has its greatest logit; the null is that of the part that is least in
    favour of it, as it is decided for windows (the lowest null score).
    """
    tokens = max(int(read.first_token[part] + read.context_tokens[part]) for part in parts)
    joined = np.full((2, tokens), -np.inf, np.float32)
    for part in parts:
        place, count = int(read.context_start[part]), int(read.context_tokens[part])
        here = joined[:, int(read.first_token[part]) :][:, :count]
        both = np.stack([starts[part][place : place + count], ends[part][place : place + count]])
        np.maximum(here, both, out=here)
    null = min(parts, key=lambda part: float(starts[part][0] + ends[part][0]))
    return (float(starts[null][0]), float(ends[null][0])), joined[0], joined[1]


def _share(logits: Logits, chosen: NDArray[np.bool_]) -> float:
    """Share of the probability that the chosen ones of some logits have."""
    weights = np.exp(logits.astype(np.float64) - float(logits.max()))
    return float(weights[chosen].sum() / weights.sum())
