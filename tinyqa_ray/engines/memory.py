"""Forwards for which the memory of a device does not suffice: they are halved, and that is said once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from tinyqa_ray.core.errors import InputError

_log = logging.getLogger(__name__)

Made = TypeVar("Made")


class Memory:
    """The memory of a device, as far as forwards that did not fit have shown how large it is."""

    def __init__(self, device: torch.device, mend: str) -> None:
        """Know nothing yet.

        Args:
            device: where forwards run.
            mend: what to do if a single window does not fit; ends the refusal.
        """
        self.device, self.mend = device, mend
        self._largest: int | None = None
        """Most tokens of a forward that fits, padding included; None until one did not."""
        self._lock = threading.Lock()

    def tried(self, windows: int, tokens: int, forward: Callable[[], Made]) -> Made | None:
        """What ``forward`` makes, or None: then the caller does it in two halves.

        One that is larger than what did not fit before is not tried.

        Args:
            windows: number of windows in the forward.
            tokens: tokens of the longest one.
            forward: computes them.

        Raises:
            InputError: the memory does not suffice for a single window.
        """
        if windows > 1 and self._largest is not None and windows * tokens > self._largest:
            return None
        try:
            return forward()
        except RuntimeError as error:
            if not _is_lack_of_memory(error):
                raise
        # Outside of the handler, since the error holds the tensors of the forward that failed.
        self._halve(windows, tokens)
        return None

    def _halve(self, windows: int, tokens: int) -> None:
        """Keep and say, at the first time, that ``windows`` of ``tokens`` tokens are too many."""
        if windows == 1:
            raise InputError(
                f"out of memory on {self.device} with a single window of {tokens} tokens, so smaller batches "
                f"cannot help; {self.mend}"
            )
        with self._lock:
            is_first = self._largest is None
            self._largest = min(self._largest or windows * tokens, windows * tokens // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if is_first:
            _log.warning(
                "out of memory on %s with %d windows of %d tokens; batches are halved, to at most %d tokens",
                *(self.device, windows, tokens, self._largest),
            )


def _is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory did not suffice: for torch, or for cuBLAS and cuDNN."""
    return isinstance(error, torch.OutOfMemoryError) or "_STATUS_ALLOC_FAILED" in str(error)
