"""Warnings that a process gives once, and how those of Ray's processes reach the driver."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator

_log = logging.getLogger(__name__)
_PACKAGE = logging.getLogger("tinyqa_ray")


@functools.cache
def say_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text before."""
    _log.warning("%s", text)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The warnings, a line each, that this process logs while the block runs; all threads' are heard.

    What Ray's processes log stays in files on their nodes. They return what was heard with their results, and
    the driver says it.
    """
    lines: list[str] = []
    handler = _Hearing(lines)
    _PACKAGE.addHandler(handler)
    try:
        yield lines
    finally:
        _PACKAGE.removeHandler(handler)


class _Hearing(logging.Handler):
    """Keeps warnings, and leaves them to be logged as they were without it."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))
        # Python writes to stderr, which Ray keeps, only where no logger has a handler.
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)
