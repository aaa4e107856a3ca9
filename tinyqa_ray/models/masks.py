"""Masks of padding that are made without a look at the batch, for which a host would wait for its card."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

_PLAIN = ("sdpa", "eager")
"""Names in transformers of the ways of attention that models take by themselves."""
_lock = threading.Lock()
_inside = 0
"""How many blocks of all threads run."""


@contextlib.contextmanager
def masks_unread() -> Iterator[None]:
    """Have transformers make a mask for every batch, without looking whether any of its windows is padded.

    It looks (``padding_mask.all()``, once a forward) to leave the mask out where none is. A host that looks
    waits for the device, which then idles while the host launches what follows. While a block runs, this
    holds for all threads.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    global _inside
    with _lock:
        if not _inside:
            for name in _PLAIN:
                ALL_MASK_ATTENTION_FUNCTIONS[name] = made_always(ALL_MASK_ATTENTION_FUNCTIONS[name])
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for name in _PLAIN:
                    del ALL_MASK_ATTENTION_FUNCTIONS[name]


@functools.cache  # torch.compile would compile anew for a new function
def made_always(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of transformers' masks that never leaves one out."""

    def made(**given: Any) -> Any:
        return make(**{**given, "allow_is_bidirectional_skip": False, "allow_is_causal_skip": False})

    return made
