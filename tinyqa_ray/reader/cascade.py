"""A cascade: a smaller model reads every text of a question first, a larger one only some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.reader.spans import Reading

Float = NDArray[np.float64]


class FirstReader(Protocol):
    """What can make the first pass: a smaller ``Reader``, or a ``SentenceSimilarity``."""

    def margins(self, pairs: Sequence[tuple[Any, Any]], *, max_answer_tokens: int = 30) -> Float:
        """How likely each pair holds an answer, ``(n,)``; only differences within a question count.

        It is -inf for a text that holds none, and NaN for a pair that the first model cannot be asked:
        whether the larger one can, it must find out itself.
        """


def margins(readings: Sequence[Reading | str]) -> Float:
    """Log odds of each pair's best span against no answer, ``span - null``, ``(n,)``.

    It is -inf for a text without any span, and NaN for a pair that the first model cannot be asked: whether
    the larger one can, it must find out itself.
    """
    return np.array([np.nan if isinstance(each, str) else _margin(each) for each in readings], np.float64)


def _margin(reading: Reading) -> float:
    return reading.spans[0].score - reading.null_score if reading.spans else -np.inf


def kept(found: Float, best: Float, keep: float) -> NDArray[np.bool_]:
    """Which pairs the larger model reads: those at most ``keep`` below the best of their question.

    So every question keeps at least one text. A pair that is not kept counts as one without an answer.

    Args:
        found: margins of pairs, ``(n,)``, see ``margins``.
        best: the largest margin of all texts of each pair's question, ``(n,)``.
        keep: a difference of margins, 0 or more.
    """
    with np.errstate(invalid="ignore"):
        dropped: NDArray[np.bool_] = best - found > keep  # False for NaN, also for -inf of a best of -inf
    return ~dropped
