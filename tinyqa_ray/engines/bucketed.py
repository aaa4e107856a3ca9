"""Batches of few shapes, so that ``torch.compile`` can compile a model for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

BUCKET = 64
"""Compiled models read lengths that are multiples of this: each is compiled for itself, which takes up to a
minute."""
ROWS = (64, 8, 1)
"""Windows of a batch; each number is compiled for itself, with every length."""
_SHAPES = 256
"""Shapes that a model may be compiled for: torch would go on without compiling after eight."""


def rounded(tokens: int, reach: int) -> int:
    """Tokens of a batch whose longest window has so many, for a model that reads ``reach`` of them."""
    return min(-(-tokens // BUCKET) * BUCKET, max(reach, tokens))


def parts(rows: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch of so many windows into batches of ``ROWS``.

    Yields:
        windows of the batch, and the number of ``ROWS`` that they are filled up to; at least half of a part
        is windows.
    """
    begin = 0
    while begin < rows:
        filled = next(size for size in ROWS if size <= 2 * (rows - begin))
        yield slice(begin, min(begin + filled, rows)), filled
        begin += filled


class FewShapes:
    """A model through ``torch.compile``, compiled at the first batch of each shape."""

    def __init__(self, model: Callable[..., Any]) -> None:
        """Take a model that is to be called with inputs of few shapes."""
        self._call = torch.compile(model, dynamic=False)
        self._shapes: set[torch.Size] = set()

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """As the model."""
        shape = inputs["input_ids"].shape
        if shape in self._shapes:
            return self._call(**inputs)
        with torch.compiler.config.patch(recompile_limit=_SHAPES):  # type: ignore[attr-defined]
            made = self._call(**inputs)
        self._shapes.add(shape)
        return made
