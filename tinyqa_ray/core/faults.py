"""Passing faults of stores and hubs: told apart from a user's mistakes, and retried with patience."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tinyqa_ray.core.errors import InputError, StoreError

PATIENCE = "TINYQA_STORE_PATIENCE_S"
"""Environment variable: for how many seconds a call to a store or hub is tried again after passing faults."""
PATIENCE_S = 120.0
"""That time where the variable is not set."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 20.0
_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504, 509, 529))
"""HTTP status codes of a server that is busy or broken for the moment."""
_ERRNO = frozenset(
    (
        *(errno.EAGAIN, errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT),
    )
)
"""Numbers of errors of a connection, or of a folder that is mounted over a network."""
_SAID = re.compile(
    r"slow_?down|service_?unavailable|internal_?failure|internal_?error|throttl|too_?many_?requests"
    r"|request_?timeout|timed? ?out|connection (was )?(reset|aborted|closed)"
    r"|curlCode: (7|18|28|35|52|55|56)\b",
    re.IGNORECASE,
)
"""What Arrow, AWS and curl call such faults: Arrow's errors have neither a number nor a status."""
_SAID_STATUS = re.compile(r"\b(?:HTTP status|status code|HTTP error)\D{0,3}(\d{3})\b", re.IGNORECASE)
_NAMES = re.compile(
    r"(Read|Write|Pool|Server)Timeout|(Read|Write|RemoteProtocol|ServerDisconnected|Payload|Protocol|SlowDown)"
    r"Error|ChunkedEncodingError|IncompleteRead"
)
"""Names of errors of HTTP clients, whose classes differ between libraries and versions."""
_NOT_CONNECTED = (
    "ConnectError",
    "ConnectTimeout",
    "NewConnectionError",
    "OfflineModeIsEnabled",
    "ProxyError",
)

_hurried = contextvars.ContextVar("hurried", default=False)

Made = TypeVar("Made")


def passing(error: BaseException) -> bool:
    """Whether an error, or one behind it, is a passing fault: busy (429, 503, …), timed out, or cut off.

    A file that is absent, closed to us or broken is none; neither is a server of HTTP that nobody could
    connect to, nor a host name that does not resolve: there is no network, or the address is wrong.
    """
    chain = list(_chain(error))
    return any(map(_is_passing, chain)) and not any(map(_is_never_reached, chain))


def _is_never_reached(error: BaseException) -> bool:
    return isinstance(error, ConnectionRefusedError) or type(error).__name__ in _NOT_CONNECTED


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, (StoreError, TimeoutError, ConnectionError)):
        return True
    if isinstance(error, (InputError, FileNotFoundError, PermissionError, IsADirectoryError)):
        return False
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        answer = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = next(
        (
            value
            for value in (
                *(answer, getattr(answer, "status_code", None)),
                *(getattr(error, "status", None), getattr(error, "code", None)),
            )
            if isinstance(value, int)
        ),
        None,
    )
    if code is not None:
        return code in _STATUS
    if _NAMES.fullmatch(type(error).__name__):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is not None:
        return error.errno in _ERRNO
    text = str(error)
    status = _SAID_STATUS.search(text)
    return int(status[1]) in _STATUS if status else bool(_SAID.search(text))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that caused it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        yield error
        behind = error.__cause__ or error.__context__
        if behind is None:
            return
        error = behind


def patiently(name: str, call: Callable[[], Made]) -> Made:
    """What ``call`` returns; after a passing fault it is called again.

    The waits grow exponentially, with jitter, so that the workers of a cluster do not come back all at once.
    ``TINYQA_STORE_PATIENCE_S`` bounds the time from the first fault to the last call; 0 tries once.

    Args:
        name: path or id, for the message.
        call: may be called several times; other errors than passing faults go through.

    Raises:
        StoreError: the fault did not pass.
    """
    wait_s, waited_s, until = _FIRST_WAIT_S, 0.0, 0.0
    while True:
        try:
            return call()
        except Exception as error:
            if isinstance(error, StoreError) or not passing(error):
                raise
            now, patience_s = time.monotonic(), _patience_s()
            until = until or now + patience_s
            pause_s = random.uniform(wait_s / 2, wait_s)
            waited_s += pause_s
            if now + pause_s > until or waited_s > patience_s:
                raise lasting(name, error) from None
        time.sleep(pause_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def lasting(name: str, error: BaseException) -> StoreError:
    """One line about a passing fault that did not pass in time."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300] or type(error).__name__
    return StoreError(
        f"{name}: the store did not serve ({reason}); this is no mistake of yours: run the same command "
        f"again later ({PATIENCE} says for how many seconds it is tried, now {_patience_s():g})"
    )


def refused(name: str, error: BaseException, mistake: str) -> InputError | StoreError:
    """The error to raise for a file that could not be used: ``mistake``, unless it is a passing fault."""
    if isinstance(error, StoreError):
        return error
    return lasting(name, error) if passing(error) else InputError(mistake)


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """Try calls of this thread once only, within the block: for what is written again soon anyway."""
    token = _hurried.set(True)
    try:
        yield
    finally:
        _hurried.reset(token)


def _patience_s() -> float:
    if _hurried.get():
        return 0.0
    given = os.environ.get(PATIENCE)
    try:
        seconds = PATIENCE_S if given is None else float(given)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise InputError(f"{PATIENCE} is {given!r}; it must be a number of seconds, at least 0")
    return seconds
