"""What every HTTP request passes first: its key, the size of its body, the count of its time and outcome."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tinyqa_ray import storage
from tinyqa_ray.errors import InputError
from tinyqa_ray.serve.errors import (
    RequestError,
    TimedOutError,
    TooLargeError,
    UnauthorizedError,
    UnhealthyError,
)
from tinyqa_ray.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

KEY = "TINYQA_API_KEY"
"""Environment variable with the key, where no file is named."""
_OPEN = {("GET", "/"), ("GET", "/health"), ("GET", "/docs"), ("GET", "/openapi.json")}
_PATHS = {"/", "/v1/answer", "/health", "/info", "/docs", "/metrics", "/openapi.json"}


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
        """A request has come."""
        self._under_way += 1
        self._idle.clear()

    def ended(self) -> None:
        """It has gone."""
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
    """An ASGI application around another one."""

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
        """Pass on a request that may pass; answer any other."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # until a reply has begun, the caller may hang up

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.begun()
        self._state.begun()
        try:
            if self._state.now == "closed":
                raise UnhealthyError("the server is going down; try another one")
            self._check_key(scope)
            body = await self._body(scope, receive)
            if body is not None:
                await self._app(_as_json(scope), _replayed(body, receive), sending)
        except RequestError as error:
            self._metrics.failed(error.error_type)
            await _reply(sending, error)
        finally:
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self._metrics.ended(path, status, time.perf_counter() - began)
            self._state.ended()

    def _check_key(self, scope: Scope) -> None:
        if self._key is None or (scope["method"], scope["path"]) in _OPEN:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        # Compared also where the scheme is wrong, so that the time tells nothing.
        same = hmac.compare_digest(key.strip(), self._key)
        if scheme.lower() != b"bearer" or not same:
            raise UnauthorizedError("the key is absent or wrong; send Authorization: Bearer KEY")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None when the caller hung up before its end."""
        limit = self._max_body_bytes
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > limit:
            raise TooLargeError(f"the body has {int(said)} bytes, over the limit of {limit}; send less")
        pieces, size, end = [], 0, time.monotonic() + self._timeout_s
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


def _as_json(scope: Scope) -> Scope:
    """The request with the header of JSON, which is all that is spoken here and is often forgotten."""
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*others, (b"content-type", b"application/json")]}


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A source that gives the body at once, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _reply(send: Send, error: RequestError) -> None:
    status, headers, body = problem(error)
    raw = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in raw.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
