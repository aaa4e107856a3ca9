from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.serve import queue as module
from tinyqa_ray.serve.errors import OverloadedError
from tinyqa_ray.serve.queue import Logits, TokenQueue, Window

T = TypeVar("T")


def window(tokens: int, value: int = 0) -> Window:
    return np.full(tokens, value, dtype=np.int32), np.zeros(tokens, dtype=np.int32)


class Echo:
    """A forward whose logits are the windows' ids, and that remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.sizes: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, windows: Sequence[Window]) -> list[Logits]:
        self.batches.append([int(ids[0]) for ids, _ in windows])
        self.sizes.append([len(ids) for ids, _ in windows])
        assert self.gate.wait(10)
        if any(ids[0] < 0 for ids, _ in windows):
            raise RuntimeError("bad window")
        return [np.stack([ids, -ids]).astype(np.float32) for ids, _ in windows]


def queue(echo: Echo, **options: Any) -> TokenQueue:
    return TokenQueue(echo, **{"max_batch_tokens": 100, "max_waiting_tokens": 10_000, **options})


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 20))


async def held(echo: Echo, made: TokenQueue, requests: Sequence[Sequence[Window]]) -> list[Any]:
    """Results of requests that all wait while a first one is in its forward."""
    echo.gate.clear()
    first = asyncio.create_task(made.run([window(1, 999)]))
    while not echo.batches:
        await asyncio.sleep(0.001)
    tasks = [asyncio.create_task(made.run(each)) for each in requests]
    await asyncio.sleep(0.01)
    echo.gate.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    return found


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.integers(1, 120), max_size=6), max_size=8), st.integers(1, 3))
def test_every_request_gets_the_logits_of_its_windows_in_their_order(
    lengths: list[list[int]], lanes: int
) -> None:
    echo = Echo()
    made = queue(echo, lanes=lanes)
    requests = [[window(n, 100 * i + j) for j, n in enumerate(own)] for i, own in enumerate(lengths)]

    async def all_at_once() -> list[list[Logits]]:
        return await asyncio.gather(*(made.run(each) for each in requests))

    for own, found in zip(requests, run(all_at_once()), strict=True):
        assert [each.tolist() for each in found] == [[ids.tolist(), (-ids).tolist()] for ids, _ in own]
    assert made.counts.waiting_tokens == 0
    assert made.counts.tokens == sum(map(sum, lengths))
    for sizes in echo.sizes:
        assert len(sizes) == 1 or max(sizes) * len(sizes) <= 100
        assert min(sizes) >= module._LEAST_FILLED * max(sizes)


def test_windows_of_several_requests_share_a_forward() -> None:
    echo = Echo()
    run(held(echo, queue(echo), [[window(20, i)] for i in range(5)]))
    assert echo.batches == [[999], [0, 1, 2, 3, 4]]


def test_windows_of_one_length_share_a_forward_also_when_others_came_between() -> None:
    echo = Echo()
    requests = [[window(40, 1), window(34, 2)], [window(34, 3)], [window(40, 4)], [window(34, 5)]]
    run(held(echo, queue(echo, max_batch_tokens=80), requests))
    assert echo.batches[1:] == [[1, 4], [3, 5], [2]], "of equals, those who have had least"


def test_request_whose_turn_it_is_never_waits_for_those_of_other_lengths() -> None:
    echo = Echo()
    odd, common = [window(70, 1)], [window(90, 2)]
    run(held(echo, queue(echo), [common, odd, *([common] * 8)]))
    assert [1] in echo.batches[:3]


def test_short_request_does_not_wait_for_a_long_one_that_came_before() -> None:
    echo = Echo()
    long, short = [window(90, 1)] * 10, [window(90, 2)]
    run(held(echo, queue(echo), [long, short]))
    assert [2] in echo.batches[:3]


@pytest.mark.parametrize(
    ("keep_lane", "tokens", "expected"), [(False, 90, [2, 2]), (True, 90, [1, 2]), (True, 40, [2, 2])]
)
def test_last_lane_is_kept_for_those_who_have_had_nothing_and_for_short_forwards(
    keep_lane: bool, tokens: int, expected: list[int]
) -> None:
    running, most = 0, 0
    go_on, lock = threading.Event(), threading.Lock()

    def counted(windows: Sequence[Window]) -> list[Logits]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(0.05)
        with lock:
            running -= 1
        return [np.zeros((2, len(ids)), np.float32) for ids, _ in windows]

    made = TokenQueue(counted, max_batch_tokens=90, max_waiting_tokens=10_000, lanes=2, keep_lane=keep_lane)

    async def long_then_short() -> list[int]:
        long = asyncio.create_task(made.run([window(tokens)] * 60))
        await asyncio.sleep(0.07)
        seen = [most]
        await made.run([window(20)])
        seen.append(most)
        go_on.set()
        await long
        return seen

    assert run(long_then_short()) == expected


@pytest.mark.parametrize(("lanes", "keep_lane"), [(1, False), (2, False), (2, True)])
def test_long_request_has_its_share_though_short_ones_keep_coming(lanes: int, keep_lane: bool) -> None:
    echo = Echo()
    made, callers, windows = queue(echo, lanes=lanes, keep_lane=keep_lane), 5, 6

    async def flooded() -> int:
        async def caller(number: int) -> None:
            while not long.done():
                await made.run([window(90, number)])

        long = asyncio.create_task(made.run([window(90, 100)] * windows))
        others = [asyncio.create_task(caller(number)) for number in range(callers)]
        await long
        forwards = len(echo.batches)
        await asyncio.gather(*others)
        return forwards

    # Six are present, and each has a sixth of the model.
    fair = windows * (callers + 1)
    assert 0.4 * fair <= run(flooded()) <= 1.6 * fair


def test_bad_window_fails_its_own_request_alone() -> None:
    echo = Echo()
    found = run(held(echo, queue(echo), [[window(20, 1)], [window(20, -1)], [window(20, 3)]]))
    assert [type(each) for each in found] == [list, RuntimeError, list]
    assert found[2][0][0, 0] == 3


def test_request_that_finds_too_much_waiting_is_refused_with_the_time_to_wait() -> None:
    echo = Echo()
    made = queue(echo, max_waiting_tokens=100)
    found = run(held(echo, made, [[window(80, 1)], [window(40, 2)], [window(20, 3)]]))
    assert [type(each) for each in found] == [list, OverloadedError, list]
    assert "80 tokens wait already, and 40 more would be over 100" in str(found[1])
    assert found[1].headers == {"Retry-After": "1"}


def test_request_that_would_wait_too_long_is_refused_with_the_time() -> None:
    echo = Echo()
    made = queue(echo, max_wait_s=2.0)

    async def crowded() -> list[Any]:
        await made.run([window(50, 7)])
        made._tokens_per_s = 30.0
        echo.batches.clear()
        return await held(echo, made, [[window(90, 1)], [window(20, 2)]])

    found = run(crowded())
    assert [type(each) for each in found] == [list, OverloadedError]
    assert "90 tokens wait already, which takes 3.0 s, over the limit of 2" in str(found[1])
    assert found[1].headers == {"Retry-After": "3"}


def test_request_above_the_limit_is_taken_when_nothing_waits() -> None:
    echo = Echo()
    assert len(run(queue(echo, max_waiting_tokens=10).run([window(50, 1)] * 3))) == 3


def test_windows_of_a_caller_who_has_gone_are_not_run() -> None:
    echo = Echo()
    made = queue(echo)

    async def left() -> None:
        echo.gate.clear()
        first = asyncio.create_task(made.run([window(1, 999)]))
        gone = asyncio.create_task(made.run([window(50, 1)] * 4))
        while not echo.batches:
            await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert made.counts.waiting_tokens == 0
        echo.gate.set()
        await first

    run(left())
    assert [1] not in echo.batches


def test_lanes_run_side_by_side() -> None:
    both = threading.Barrier(2, timeout=10)

    def meeting(windows: Sequence[Window]) -> list[Logits]:
        both.wait()
        return [np.zeros((2, len(ids)), np.float32) for ids, _ in windows]

    made = TokenQueue(meeting, max_batch_tokens=10, max_waiting_tokens=100, lanes=2)
    assert len(run(made.run([window(10), window(10)]))) == 2


def test_padding_is_counted() -> None:
    echo = Echo()
    made = queue(echo)
    run(held(echo, made, [[window(20, 1)], [window(16, 2)]]))
    assert (made.counts.forwards, made.counts.tokens, made.counts.padded_tokens) == (2, 37, 41)
