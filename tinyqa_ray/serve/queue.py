"""Windows of all waiting requests → forwards within a token budget, in a fair order.

A request is cut into windows, and a forward mixes the windows of several requests. So a long document does
not hold up the short ones behind it, a bad window fails its own request alone, and the windows of a caller
who has gone are no longer run.

The order is that of fair queueing (Demers, Keshav and Shenker, 1989): windows are run in the order in which
they would finish if all waiting requests were served at once, each with the same share of the model. The
request whose turn it is fills its forward with windows of about the same length, of others, too, so that
little of it is padding; what they are given counts for their own turn.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import time
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
"""A window shorter than this share of its forward's longest window waits for another forward, because padding
costs time too."""
_ALIKE = 32
"""Lengths that differ by less than one in so many are alike: of alike windows, those in turn come first."""
_PACE_KEPT = 0.9
"""Weight of the earlier pace in the running mean, when a forward has been measured."""


@dataclass(eq=False, slots=True)
class _Request:
    windows: Sequence[Window]
    done: asyncio.Future[list[Logits]]
    arrived_at: float
    """Virtual time at arrival: tokens that each request had been given by then, at a fair share."""
    waiting: list[tuple[int, int]]
    """Tokens and numbers of the windows that no forward has taken yet, the longest last."""
    found: list[Logits | None]
    given_tokens: int = 0
    parted: bool = False
    """Whether its windows are spread over several forwards."""

    def turn(self) -> float:
        """Virtual time at which what it was given would finish; the request with the smallest comes next."""
        return self.arrived_at + self.given_tokens

    def length(self) -> int:
        """Tokens of its longest waiting window, which is its next one."""
        return self.waiting[-1][0]

    def near(self, tokens: int, most: int) -> list[tuple[int, int]]:
        """Its waiting windows nearest to so many tokens: ``most`` no longer than that, ``most`` longer."""
        place = bisect.bisect_right(self.waiting, (tokens, len(self.windows)))
        return self.waiting[max(place - most, 0) : place + most]


@dataclass(slots=True)
class Counts:
    """What a queue has done since it started, and what is waiting."""

    forwards: int = 0
    tokens: int = 0
    """Tokens of windows that were run."""
    padded_tokens: int = 0
    """Tokens of forwards, padding included."""
    seconds: float = 0.0
    """Seconds spent in forwards; the times of forwards side by side add up."""
    waiting_tokens: int = 0


@dataclass(eq=False)
class TokenQueue:
    """The windows that wait for a forward; to be used from one event loop."""

    forward: Forward
    """Runs windows; called in a thread."""
    max_batch_tokens: int
    """Most tokens of a forward, padding included; a longer window is run alone."""
    max_waiting_tokens: int
    """A request is refused when more tokens than this are waiting."""
    max_wait_s: float = float("inf")
    """A request is refused when it would wait longer than this at the present pace."""
    lanes: int = 1
    """Most forwards at the same time."""
    keep_lane: bool = False
    """Whether one lane is kept free for short forwards, and for requests of which nothing has been run yet.
    It costs little where a single forward may use the cores of all lanes."""
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._requests: list[_Request] = []
        self._tokens_per_s = 0.0
        self._fair_tokens = 0.0
        self._threads = ThreadPoolExecutor(self.lanes, "forward")
        self._running: dict[asyncio.Task[None], bool] = {}
        """Whether it holds only a part of some request."""

    async def run(self, windows: Sequence[Window]) -> list[Logits]:
        """The logits of each window.

        Raises:
            OverloadedError: too many tokens are waiting already.
            Exception: what the forward of one of these windows raised.
        """
        if not windows:
            return []
        tokens = sum(len(ids) for ids, _ in windows)
        self._check_room(tokens)
        loop = asyncio.get_running_loop()
        waiting = sorted((len(ids), number) for number, (ids, _) in enumerate(windows))
        request = _Request(windows, loop.create_future(), self._fair_tokens, waiting, [None] * len(windows))
        self._requests.append(request)
        self.counts.waiting_tokens += tokens
        self._start()
        try:
            return await request.done
        finally:  # the caller has gone: its windows are no longer run
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
        """Seconds until what waits now has been run, at the present pace; 1 before any pace is known."""
        return self.counts.waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1.0

    def _forget(self, request: _Request) -> None:
        self.counts.waiting_tokens -= sum(tokens for tokens, _ in request.waiting)
        request.waiting.clear()
        with contextlib.suppress(ValueError):
            self._requests.remove(request)

    def _start(self) -> None:
        """Start forwards as long as there is a free lane and a waiting window."""
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
            task.result()  # an error here is a bug: errors of a forward go to its requests
        self._start()

    def _take(self) -> tuple[list[tuple[_Request, int]], bool]:
        """Choose the windows of the next forward: the next in turn, and those nearest to its length that fit.

        Returns:
            the windows, and whether the forward leaves other windows of one of their requests waiting.
        """
        kept = self.keep_lane and 0 < self.lanes - 1 <= sum(self._running.values())
        limit = self.max_batch_tokens // 2 if kept else self.max_batch_tokens
        due = [each for each in self._requests if not (kept and each.given_tokens and each.length() > limit)]
        if not due:
            return [], False
        batch: list[tuple[_Request, int]] = []
        shortest = longest = 0
        for tokens, request, number in _nearest(sorted(due, key=_Request.turn), limit):
            low, high = (min(shortest, tokens), max(longest, tokens)) if batch else (tokens, tokens)
            if batch and (high * (len(batch) + 1) > limit or low < _LEAST_FILLED * high):
                continue
            shortest, longest = low, high
            batch.append((request, number))
            request.waiting.remove((tokens, number))
            request.given_tokens += tokens
            self.counts.waiting_tokens -= tokens
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
        """Run the windows of a failed forward one by one, so that a bad one fails only its own request."""
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


def _nearest(due: Sequence[_Request], limit: int) -> list[tuple[int, _Request, int]]:
    """Waiting windows that could share a forward of ``limit`` tokens with the first one, the nearest first.

    Args:
        due: the requests in turn; the forward is about as long as the first one's longest window.
        limit: see above.

    Returns:
        tokens, request and number of each window.
    """
    first = due[0].length()
    most = max(1, limit // first)
    found = [(tokens, request, number) for request in due for tokens, number in request.near(first, most)]
    # The sort is stable: of windows that are equally near, those of the request in turn stay first.
    return sorted(found, key=lambda each: abs(each[0] - first) * _ALIKE // first)


def _deliver(request: _Request, number: int, logits: Logits) -> None:
    request.found[number] = logits
    if not request.done.done() and all(each is not None for each in request.found):
        request.done.set_result([each for each in request.found if each is not None])
