"""What a training step reads, prepared ahead of it: the next batches are collated and copied in a thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tinyqa_ray.distill.batches import Batch, Index, WindowData, copied, micro_batches
from tinyqa_ray.distill.session import Session

_AHEAD = 3
"""Steps that are prepared before they are needed; enough for the start of an epoch, whose order is drawn."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """What a worker reads in one optimiser step."""

    windows: Index
    """Rows of the global batch."""
    parts: Sequence[Batch]
    """The worker's micro-batches, on its device."""
    words: Tensor | None = None
    """Ids of the tokens of the global batch, padding among them, ``(W,)`` in order, on the device; None
    where they are not asked for."""


def step_input(
    data: WindowData, windows: Index, session: Session, parts: int, *, with_words: bool = False
) -> StepInput:
    """Collate a worker's ``parts`` micro-batches of the global batch ``windows``, on its device.

    Every worker has all windows, and so knows ``with_words`` the tokens that the others read.
    """
    mine = micro_batches(windows, session.rank, session.world_size, parts)
    batches = [data.batch(rows, windows).to(session.device) for rows in mine]
    words = copied(torch.from_numpy(data.words(windows)), session.device) if with_words else None
    return StepInput(windows, batches, words)


@contextmanager
def fed(
    prepare: Callable[[int], StepInput], steps: range, device: torch.device
) -> Iterator[Iterator[StepInput]]:
    """The inputs of ``steps``, in order; a thread prepares them while earlier steps compute.

    An error of ``prepare`` is raised where its step is taken. The thread ends with the block, which waits
    for the step that is being prepared.

    Args:
        prepare: makes the input of a step.
        steps: numbers of the steps.
        device: where the inputs go.
    """

    def use_device() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # each thread has its own; page-locked memory is made for it

    def inputs() -> Iterator[StepInput]:
        waiting = deque(thread.submit(prepare, step) for step in steps[:_AHEAD])
        for step in steps:
            ready = waiting.popleft().result()
            if step + _AHEAD in steps:
                waiting.append(thread.submit(prepare, step + _AHEAD))
            yield ready

    thread = ThreadPoolExecutor(1, "feed", use_device)
    try:
        yield inputs()
    finally:
        thread.shutdown(cancel_futures=True)
