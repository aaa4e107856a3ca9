"""Callers of a server, in a process of their own: as fast as they are answered, or at a given rate."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from typing import Any

import aiohttp

SEED = 13


async def closed(url: str, bodies: list[Any], clients: int) -> dict[str, Any]:
    """So many callers, each with the next request once its last one is answered."""
    seen = Seen()
    waiting = iter(bodies)
    async with _session(clients) as session:
        began = time.perf_counter()
        await asyncio.gather(*(_caller(session, url, waiting, seen) for _ in range(clients)))
        return {"seconds": time.perf_counter() - began, **seen.figures()}


async def opened(url: str, bodies: list[Any], rate: float) -> dict[str, Any]:
    """Requests that come by chance, ``rate`` a second on the average, whether or not the last are answered.

    Latencies count from the moment that a request was to be sent.
    """
    rng = random.Random(SEED)
    seen = Seen()
    async with _session(10_000) as session:
        began = time.perf_counter()
        due, tasks = began, []
        for body in bodies:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(_ask(session, url, body, due, seen)))
        await asyncio.gather(*tasks)
        return {"seconds": time.perf_counter() - began, **seen.figures()}


class Seen:
    """What callers have seen."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        """Of those answered."""

    def figures(self) -> dict[str, Any]:
        """Statuses, and latencies of answers in ms at some quantiles."""
        ordered = sorted(self.seconds)
        picked = {name: ordered[int(share * (len(ordered) - 1))] for name, share in _QUANTILES if ordered}
        return {
            "statuses": dict(self.statuses),
            "latency_ms": {name: round(1000 * value, 1) for name, value in picked.items()},
        }


_QUANTILES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))


def _session(connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))


async def _caller(session: aiohttp.ClientSession, url: str, waiting: Any, seen: Seen) -> None:
    for body in waiting:
        await _ask(session, url, body, time.perf_counter(), seen)


async def _ask(session: aiohttp.ClientSession, url: str, body: Any, due: float, seen: Seen) -> None:
    try:
        async with session.post(url, json=body) as reply:
            await reply.read()
            seen.statuses[str(reply.status)] += 1
            if reply.status == 200:
                seen.seconds.append(time.perf_counter() - due)
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        seen.statuses[type(error).__name__] += 1


def main() -> None:
    """One job a line on stdin, its figures on stdout; a job may hold a second one that runs beside it."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_run(json.loads(line)))), flush=True)


async def _run(job: dict[str, Any]) -> dict[str, Any]:
    beside = job.pop("beside", None)
    kind = job.pop("kind")
    work = (closed if kind == "closed" else opened)(**job)
    if beside is None:
        return await work
    background = asyncio.create_task(_run(beside))
    found = await work
    background.cancel()
    await asyncio.gather(background, return_exceptions=True)
    return found


if __name__ == "__main__":
    main()
