"""Windows of all waiting requests → forwards within a token budget, in a fair order.

A request is cut up: each forward takes the windows that are due, whosever they are. So a long document
does not hold up the short ones behind it, a bad window fails its own request alone, and a caller who has gone
costs nothing more.

The order is that of fair queueing (Demers, Keshav and Shenker, 1989): a window comes when its request would
be due if all that are present were served at once, each with the same share of the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.serve.errors import OverloadedError

Ids = NDArray[np.int32]
Window = tuple[Ids, Ids]
"""Token ids and token types, ``(tokens,)`` each."""
Logits = NDArray[np.float32]
"""Start and end logits of a window, ``(2, tokens)``."""
Forward = Callable[[Sequence[Window]], list[Logits]]

_LEAST_FILLED = 0.8
"""Windows shorter than this share of the longest of their forward wait for another: padding is work, too."""
_PACE_KEPT = 0.9
"""Share of the old pace that a new forward leaves in the running mean."""


@dataclass(eq=False, slots=True)
class _Request:
    windows: Sequence[Window]
    done: asyncio.Future[list[Logits]]
    arrived_at: float
    """Tokens that each of those present had been given, at a fair share, when it came."""
    waiting: deque[int]
    """Numbers of the windows that no forward has taken."""
    found: list[Logits | None]
    given_tokens: int = 0
    parted: bool = False
    """Whether it took or takes several forwards."""

    def turn(self) -> float:
        """The request with the least comes next."""
        return self.arrived_at + self.given_tokens

    def length(self) -> int:
        """Tokens of the window that is due."""
        return len(self.windows[self.waiting[0]][0])


@dataclass(slots=True)
class Counts:
    """What a queue has done since it began, and what waits."""

    forwards: int = 0
    tokens: int = 0
    """Of windows that were run."""
    padded_tokens: int = 0
    """Of forwards, padding included."""
    seconds: float = 0.0
    """Spent in forwards, one beside the other counted apart."""
    waiting_tokens: int = 0


@dataclass(eq=False)
class TokenQueue:
    """Windows that wait for a forward; used from one event loop."""

    forward: Forward
    """Runs windows, in a thread."""
    max_batch_tokens: int
    """Tokens of a forward, padding included; a longer window goes alone."""
    max_waiting_tokens: int
    """A request that finds more is refused."""
    max_wait_s: float = float("inf")
    """So is one that would wait longer, by the pace so far."""
    lanes: int = 1
    """Forwards side by side."""
    keep_lane: bool = False
    """Whether one lane is only for requests that have been given nothing yet, and short forwards of others;
    costs little where a forward that is alone is faster."""
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._requests: list[_Request] = []
        self._tokens_per_s = 0.0
        self._fair_tokens = 0.0
        self._threads = ThreadPoolExecutor(self.lanes, "forward")
        self._running: dict[asyncio.Task[None], bool] = {}
        """Whether it holds but a part of some request."""

    async def run(self, windows: Sequence[Window]) -> list[Logits]:
        """The logits of each window.

        Raises:
            OverloadedError: too much waits already.
            Exception: what the forward of one of these windows raised.
        """
        if not windows:
            return []
        tokens = sum(len(ids) for ids, _ in windows)
        self._check_room(tokens)
        loop = asyncio.get_running_loop()
        waiting, none = deque(range(len(windows))), [None] * len(windows)
        request = _Request(windows, loop.create_future(), self._fair_tokens, waiting, [*none])
        self._requests.append(request)
        self.counts.waiting_tokens += tokens
        self._start()
        try:
            return await request.done
        finally:  # of a caller who has gone, nothing is run any more
            self._forget(request)

    def _check_room(self, tokens: int) -> None:
        waiting, seconds = self.counts.waiting_tokens, self.seconds_to_wait()
        if waiting and waiting + tokens > self.max_waiting_tokens:
            raise OverloadedError(
                f"{waiting} tokens wait already, and {tokens} more would be over {self.max_waiting_tokens}; "
                "come again later",
                seconds,
            )
        if waiting and self._tokens_per_s and seconds > self.max_wait_s:
            raise OverloadedError(
                f"{waiting} tokens wait already, which takes {seconds:.1f} s, over the limit of "
                f"{self.max_wait_s:g}; come again later",
                seconds,
            )

    def seconds_to_wait(self) -> float:
        """Until what waits now has been run, by the pace so far; a second before there is one."""
        return self.counts.waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1.0

    def _forget(self, request: _Request) -> None:
        self.counts.waiting_tokens -= sum(len(request.windows[number][0]) for number in request.waiting)
        request.waiting.clear()
        with contextlib.suppress(ValueError):
            self._requests.remove(request)

    def _start(self) -> None:
        """Begin as many forwards as there are lanes and work for."""
        while len(self._running) < self.lanes:
            batch, parted = self._take()
            if not batch:
                break
            task = asyncio.get_running_loop().create_task(self._work(batch))
            self._running[task] = parted
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled():
            task.result()  # an error here is a bug: what a forward raises belongs to its requests
        self._start()

    def _take(self) -> tuple[list[tuple[_Request, int]], bool]:
        """The next forward: whose turn it is, and as many like it as fit; whether it parts a request."""
        kept = self.keep_lane and 0 < self.lanes - 1 <= sum(self._running.values())
        limit = self.max_batch_tokens // 2 if kept else self.max_batch_tokens
        due = [each for each in self._requests if not (kept and each.given_tokens and each.length() > limit)]
        batch: list[tuple[_Request, int]] = []
        shortest = longest = 0
        for request in sorted(due, key=_Request.turn):
            while request.waiting:
                tokens = request.length()
                low, high = (min(shortest, tokens), max(longest, tokens)) if batch else (tokens, tokens)
                too_many = high * (len(batch) + 1) > limit
                if batch and (too_many or low < _LEAST_FILLED * high):
                    break
                shortest, longest = low, high
                batch.append((request, request.waiting.popleft()))
                request.given_tokens += tokens
                self.counts.waiting_tokens -= tokens
            if longest * (len(batch) + 1) > limit:
                break
        self._requests = [request for request in self._requests if request.waiting]
        for request, _ in batch:
            request.parted |= bool(request.waiting)
        return batch, any(request.parted for request, _ in batch)

    async def _work(self, batch: Sequence[tuple[_Request, int]]) -> None:
        loop = asyncio.get_running_loop()
        windows = [request.windows[number] for request, number in batch]
        began = time.monotonic()
        try:
            found = await loop.run_in_executor(self._threads, self.forward, windows)
        except Exception as error:
            await self._one_by_one(batch, error)
            return
        assert len(found) == len(batch), f"{len(found)} logits of {len(batch)} windows"
        self._count(windows, time.monotonic() - began)
        present = {id(request) for request in (*self._requests, *(request for request, _ in batch))}
        self._fair_tokens += sum(len(ids) for ids, _ in windows) / len(present)
        for (request, number), logits in zip(batch, found, strict=True):
            _deliver(request, number, logits)

    async def _one_by_one(self, batch: Sequence[tuple[_Request, int]], error: Exception) -> None:
        """After a forward that failed: each window alone, so that it fails its own request only."""
        if len(batch) > 1:
            for one in batch:
                await self._work([one])
            return
        ((request, _),) = batch
        if not request.done.done():
            request.done.set_exception(error)
        self._forget(request)

    def _count(self, windows: Sequence[Window], seconds: float) -> None:
        lengths = [len(ids) for ids, _ in windows]
        counts = self.counts
        counts.forwards += 1
        counts.tokens += sum(lengths)
        counts.padded_tokens += max(lengths) * len(lengths)
        counts.seconds += seconds
        pace = self.lanes * sum(lengths) / max(seconds, 1e-9)
        kept = _PACE_KEPT if self._tokens_per_s else 0.0
        self._tokens_per_s = kept * self._tokens_per_s + (1 - kept) * pace


def _deliver(request: _Request, number: int, logits: Logits) -> None:
    request.found[number] = logits
    if not request.done.done() and all(each is not None for each in request.found):
        request.done.set_result([each for each in request.found if each is not None])
