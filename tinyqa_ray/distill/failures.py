"""Failures that a retry would only repeat, explained in one line with the option that helps."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.precision import NotFiniteError

_log = logging.getLogger(__name__)
Fitted = TypeVar("Fitted")

_NO_SPACE = ("no space left on device", "file write failed", "disk quota exceeded", "unexpected pos ")
"""The last is what torch.save says of a full disk."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")
"""The last is cuBLAS's and cuDNN's."""
_WRAPPED = ("cause", "health_check_failure", "controller_failure")
"""Where Ray keeps the error of a task, of a worker that died, and of Ray Train's controller."""


def explained(error: BaseException, config: DistillConfig) -> str | None:
    """Explain an error, or one that caused it, in one line; None if a retry may succeed."""
    for cause in causes(error):
        text = str(cause).lower()
        if isinstance(cause, (InputError, NotFiniteError)):
            return str(cause)
        number = getattr(cause, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in _NO_SPACE):
            return (
                f"no space left to write a checkpoint ({_first_line(cause)}); free some, or set TMPDIR and "
                "--output to a larger disk, then run the same command again"
            )
        is_memory = isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError"
        is_memory = is_memory or number == errno.ENOMEM
        if is_memory or (isinstance(cause, RuntimeError) and any(words in text for words in _NO_MEMORY)):
            parts = config.gradient_accumulation_steps
            windows = config.batch_size // (config.workers * parts)
            return (
                f"out of memory with {windows} windows in a forward ({_first_line(cause)}); raise "
                f"--gradient-accumulation-steps (now {parts}), which keeps the batch of {config.batch_size}, "
                "or give more --workers; strategy 'zero2' spreads the optimiser's state"
            )
    return None


def as_long_as_it_advances(
    fit: Callable[[], Fitted], newest: Callable[[], str | None], may_pass: Callable[[Exception], bool]
) -> Fitted:
    """What ``fit`` returns; if it fails although a checkpoint has come since it began, it is called again.

    Ray counts the failures of a whole run: a training of days on nodes that are lost now and then would end,
    however far it comes between two losses. So the budget of a call of ``fit`` is renewed as long as each
    call advances.

    Args:
        fit: trains on from the newest checkpoint, and fails once its budget of failures is spent.
        newest: names the newest whole checkpoint; None when there is none.
        may_pass: whether another try may get over an error; other errors go through.
    """
    while True:
        before = newest()
        try:
            return fit()
        except Exception as error:
            if not may_pass(error) or newest() == before:
                raise
            _log.warning("training failed, but had advanced; it goes on from its checkpoint (%s)", error)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all its causes; before it, if it is Ray Train's, the errors of its workers."""
    # First, since the outer error quotes them all.
    for inner in (getattr(error, "worker_failures", None) or {}).values():
        yield from causes(inner)
    yield error
    wrapped = (getattr(error, name, None) for name in _WRAPPED)
    for other in (error.__cause__, *wrapped):
        if isinstance(other, BaseException):
            yield from causes(other)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
