"""The loop that people write round a quick engine: windows sorted by length, batches padded to their longest.

Of transformers and numpy only, as peers import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

MAX_SEQ_LEN, DOC_STRIDE, MAX_ANSWER_TOKENS = 384, 128, 30
"""As ours and the pipeline's."""
Forward = Callable[[dict[str, Any]], tuple[Any, Any]]
"""Inputs ``(B, T)`` by name → start and end logits ``(B, T)``, in numpy."""


def answers(
    pairs: Sequence[tuple[str, str]], tokenizer: Any, forward: Forward, batch_size: int
) -> list[str | None]:
    """The text of the best span of each pair, over its windows.

    Args:
        pairs: questions, each with its context.
        tokenizer: a fast tokenizer.
        forward: runs the model.
        batch_size: windows of a forward.
    """
    made = tokenizer(
        [question for question, _ in pairs],
        [context for _, context in pairs],
        truncation="only_second",
        max_length=MAX_SEQ_LEN,
        stride=DOC_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    names = [name for name in tokenizer.model_input_names if name in made]
    lengths = np.array([len(ids) for ids in made["input_ids"]])
    order = np.argsort(-lengths, kind="stable")
    best: list[tuple[float, str | None]] = [(-np.inf, None)] * len(pairs)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        inputs = tokenizer.pad(
            {name: [made[name][row] for row in rows] for name in names}, return_tensors="np"
        )
        starts, ends = forward(dict(inputs))
        for row, start, end in zip(rows, starts, ends, strict=True):
            pair = made["overflow_to_sample_mapping"][row]
            score, span = _best(start, end, made.sequence_ids(row), made["offset_mapping"][row])
            if span is not None and score > best[pair][0]:
                best[pair] = (score, pairs[pair][1][span[0] : span[1]])
    return [text for _, text in best]


def _best(start: Any, end: Any, sequence: Sequence[int | None], offsets: Any) -> tuple[float, Any]:
    """Score and characters of the best span of a window; no characters where it shows no context."""
    shown = np.flatnonzero(np.array(sequence) == 1)
    if not len(shown):
        return -np.inf, None
    begin, stop = int(shown[0]), int(shown[-1]) + 1
    scores = start[begin:stop, None] + end[None, begin:stop]
    allowed = np.triu(np.ones_like(scores, bool)) & np.tril(np.ones_like(scores, bool), MAX_ANSWER_TOKENS - 1)
    scores = np.where(allowed, scores, -np.inf)
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return float(scores[first, last]), (offsets[begin + first][0], offsets[begin + last][1])
