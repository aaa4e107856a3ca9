"""What every HTTP request passes first: checks of its key and its body, its time limit, and counters."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.serve.errors import (
    InternalError,
    MediaTypeError,
    RequestError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnhealthyError,
)
from tinyqa_ray.serve.metrics import Metrics
from tinyqa_ray.serve.uploads import is_form

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "TINYQA_API_KEY"
"""Environment variable that holds the key when no file is named."""
_OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/docs"), ("GET", "/openapi.json")}
_PATHS = {"/", "/v1/answer", "/health", "/info", "/docs", "/metrics", "/openapi.json"}
_JSON = re.compile(r"application/([^/;\s]+\+)?json", re.IGNORECASE)


class State:
    """Whether a server takes requests, and how many are under way."""

    def __init__(self) -> None:
        self.now = "open"
        """``open``; ``draining``: ``/health`` says 503; ``closed``: new requests are answered with 503."""
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Return once no request is under way."""
        await self._idle.wait()

    def begun(self) -> None:
        """Count a request that has arrived."""
        self._under_way += 1
        self._idle.clear()

    def ended(self) -> None:
        """Count a request that has ended."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()


def read_key(file: str | None) -> bytes | None:
    """The key that requests must carry, from a file or the environment; None where there is none.

    Raises:
        InputError: the file is absent or empty.
    """
    if file is None:
        return os.environ.get(KEY, "").strip().encode() or None
    key = storage.read_bytes(file).strip()
    if not key:
        raise InputError(f"{file}: is empty; write the key into it")
    return key


def problem(error: RequestError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply to a request that is not answered."""
    body = json.dumps({"error": str(error), "error_type": error.error_type}).encode()
    return error.status, error.headers, body


class Gate:
    """An ASGI application that checks requests before it passes them to another one."""

    def __init__(
        self,
        app: App,
        *,
        key: bytes | None,
        max_body_bytes: int,
        timeout_s: float,
        metrics: Metrics,
        state: State,
    ) -> None:
        self._app = app
        self._key = key
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._metrics = metrics
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that is allowed, and refuse any other."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # the status if the caller hangs up before the reply
        self._metrics.begun()
        self._state.begun()
        try:
            reply = await self._reply(scope, receive)
            if reply:
                status = reply[0]["status"]
            for message in reply:
                await send(message)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.ended(path, status, time.perf_counter() - began)
            self._state.ended()

    async def _reply(self, scope: Scope, receive: Receive) -> list[Message]:
        """The whole reply to a request; empty if the caller hung up before the end of the body.

        The application's reply is held back until it is complete, so that a failure or timeout at any point
        is answered in the form of every other error.
        """
        reply: list[Message] = []

        async def keep(message: Message) -> None:
            reply.append(message)

        end = time.monotonic() + self._timeout_s
        try:
            if self._state.now == "closed":
                raise UnhealthyError("the server is going down; try another one")
            self._check_key(scope)
            _check_type(scope)
            body = await self._body(scope, receive, end)
            if body is not None:
                left_s = max(0.0, end - time.monotonic())
                await asyncio.wait_for(self._app(scope, _replayed(body, receive), keep), left_s)
            return reply
        except RequestError as error:
            return self._refusal(error)
        except asyncio.TimeoutError:
            return self._refusal(
                TimedOutError(f"not answered within {self._timeout_s:g} s; come again later")
            )
        except Exception as error:
            log.error("a request failed", exc_info=error)
            return self._refusal(InternalError("the server failed; see its log"))

    def _refusal(self, error: RequestError) -> list[Message]:
        self._metrics.failed(error.error_type)
        status, headers, body = problem(error)
        raw = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in raw.items()]
        return [
            {"type": "http.response.start", "status": status, "headers": pairs},
            {"type": "http.response.body", "body": body},
        ]

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or (scope["method"], scope["path"]) in _OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # Compared even if the scheme is wrong, so that the time taken reveals nothing.
        same = hmac.compare_digest(key.strip(), self._key)
        if scheme.lower() != b"bearer" or not same:
            raise UnauthorizedError("the key is absent or wrong; send Authorization: Bearer KEY")

    async def _body(self, scope: Scope, receive: Receive, end: float) -> bytes | None:
        """The whole body, which must arrive before ``end``; None when the caller hung up before its end."""
        limit = self._max_body_bytes
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > limit:
            raise TooLargeError(f"the body has {int(said)} bytes, over the limit of {limit}; send less")
        pieces, size = [], 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                raise TimedOutError(f"the body did not come within {self._timeout_s:g} s") from None
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise TooLargeError(f"the body has more than {limit} bytes; send less")
            if not message.get("more_body", False):
                return b"".join(pieces)


def _check_type(scope: Scope) -> None:
    """Refuse a body that does not say it is JSON, or a form with files for ``/v1/answer``.

    A web page of another site can post bodies of the types of HTML forms, or of no type, to any server that
    its reader's browser reaches. To post JSON, the browser first asks the server for permission (CORS), which
    this server never gives. A form with files is taken from programs, which send no ``Origin``, and from
    pages that say ``X-Requested-With``, for which a page of another site would have to ask, too.
    """
    if scope["method"] != "POST":
        return
    headers = dict(scope["headers"])
    given = headers.get(b"content-type", b"").decode("latin-1")
    asked_for = b"origin" not in headers or b"x-requested-with" in headers
    if scope["path"] == "/v1/answer" and is_form(given) and asked_for:
        return
    if not _JSON.fullmatch(given.partition(";")[0].strip()):
        what = f"is {given[:100]!r}" if given else "has no type"
        raise MediaTypeError(f"the body {what}; send JSON, with Content-Type: application/json")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the whole body first, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
