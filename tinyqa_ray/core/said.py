"""Warnings that a process gives once, however often their cause comes."""

from __future__ import annotations

import functools
import logging

_log = logging.getLogger(__name__)


@functools.cache
def say_once(text: str) -> None:
    """Log a warning, unless this process has logged the same text before."""
    _log.warning("%s", text)
