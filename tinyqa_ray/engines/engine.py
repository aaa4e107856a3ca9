"""Engines: start and end logits of unpadded windows, in length-sorted batches within a token budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.datasets.windows import Tokens, pad, token_budget_batches

Logits = NDArray[np.float32]
Index = NDArray[np.int64]


class Engine(ABC):
    """What runs a question-answering model over windows."""

    name: str
    """Library, precision and device, for people to read."""
    parameters: int
    """Number of weights of the model."""
    max_batch_tokens: int
    """Tokens of a forward at which this engine is about as fast as it gets."""
    pad_id: int
    """Token that fills up a batch; the attention mask hides it."""
    lanes: int = 1
    """Threads that may be in ``run`` at the same time."""
    spreads: bool = False
    """Whether a thread that is alone in ``run`` computes on the cores of all lanes, not only on its own."""

    @abstractmethod
    def run(self, windows: Tokens, batches: Iterable[Index]) -> Iterator[tuple[Index, Logits, Logits]]:
        """Run batches of windows.

        Args:
            windows: the tokens of W windows.
            batches: arrays of B window numbers.

        Yields:
            in any order: a batch, its start logits and its end logits, ``(B, T)`` each. T is the tokens of
            the longest window or more; values beyond a window's tokens mean nothing.
        """

    def logits(
        self, windows: Tokens, max_batch_tokens: int | None = None
    ) -> tuple[list[Logits], list[Logits]]:
        """Logits of every window, in the windows' order.

        Args:
            windows: the tokens of W windows.
            max_batch_tokens: tokens of one forward, padding included; the engine's own when not given.

        Returns:
            start and end logits: W arrays of ``(tokens of the window,)``.
        """
        starts: list[Logits] = [np.empty(0, np.float32)] * len(windows)
        ends = list(starts)
        lengths = windows.lengths
        batches = token_budget_batches(lengths, max_batch_tokens or self.max_batch_tokens)
        for batch, start, end in self.run(windows, batches):
            for row, window in enumerate(batch):
                tokens = lengths[window]
                starts[window], ends[window] = start[row, :tokens].copy(), end[row, :tokens].copy()
        return starts, ends


def padded(
    windows: Tokens, batch: Index, pad_id: int, length: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Token ids, attention mask and token types of B windows, ``(B, length)`` each."""
    rows = [windows.input_ids[window] for window in batch]
    ids = pad(rows, pad_id, length)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
    return ids, mask, pad([windows.type_ids[window] for window in batch], 0, length)
