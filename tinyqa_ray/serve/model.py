"""What a replica of the model does, without Ray: its engine behind its queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import choose
from tinyqa_ray.serve.errors import OverloadedError
from tinyqa_ray.serve.queue import Ids, Logits, TokenQueue, Window

CPU_BATCH_TOKENS = 512
"""Most tokens of a forward on a CPU: a short request waits for at most one such forward."""
_WARM_UP = (16, 64, 128, 256, 384)
"""Tokens of the windows that are run as a warm-up before the first request."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Windows in the form in which they are sent: three arrays, however many windows there are.

    Shapes:
        ids, types: ``(tokens of all windows,)``.
        lengths: ``(W,)``.
    """

    ids: Ids
    types: NDArray[np.int8]
    lengths: Ids

    @classmethod
    def of(cls, windows: Tokens) -> Packed:
        """Pack windows."""
        ids, types = np.concatenate(windows.input_ids), np.concatenate(windows.type_ids)
        return cls(ids, types.astype(np.int8), windows.lengths)

    def unpacked(self) -> list[Window]:
        """Token ids and types of each window."""
        borders = np.cumsum(self.lengths)[:-1]
        types = np.split(self.types.astype(np.int32), borders)
        return list(zip(np.split(self.ids, borders), types, strict=True))


@dataclass(frozen=True, slots=True)
class Reply:
    """What a replica answers: logits, or why there are none."""

    logits: Logits | None = None
    """``(2, tokens of all windows)``; None where it is refused."""
    refusal: str = ""
    retry_after_s: float = 0.0


class Model:
    """A model that runs windows of many requests in one forward."""

    def __init__(self, config: ServeConfig) -> None:
        """Load and warm up the model.

        Raises:
            InputError: as ``Reader.from_pretrained``.
        """
        quiet_models()
        torch.set_num_threads(config.threads or cores(1))
        device = "cuda" if config.num_gpus else "cpu"
        self.engine, _ = choose.load(config.model, device=device, precision=config.precision)
        best = self.engine.max_batch_tokens if config.num_gpus else CPU_BATCH_TOKENS
        self.queue = TokenQueue(
            self.forward,
            max_batch_tokens=config.max_batch_tokens or best,
            max_waiting_tokens=config.limits.max_waiting_tokens,
            max_wait_s=config.limits.max_wait_s,
            lanes=self.engine.lanes,
            keep_lane=self.engine.spreads,
        )
        for tokens in _WARM_UP:
            ids = np.full(tokens, self.engine.pad_id, dtype=np.int32)
            self.forward([(ids, np.zeros_like(ids))])

    def forward(self, windows: Sequence[Window]) -> list[Logits]:
        """The logits of some windows, in one forward."""
        tokens = Tokens([ids for ids, _ in windows], [types for _, types in windows])
        ((_, start, end),) = self.engine.run(tokens, [np.arange(len(windows))])
        return [
            np.stack([start[row, :length], end[row, :length]]) for row, length in enumerate(tokens.lengths)
        ]

    async def logits(self, packed: Packed) -> Reply:
        """The logits of a request's windows, or a refusal when too much is waiting."""
        try:
            found = await self.queue.run(packed.unpacked())
        except OverloadedError as error:
            return Reply(None, str(error), error.retry_after_s)
        return Reply(np.concatenate(found, axis=1))
