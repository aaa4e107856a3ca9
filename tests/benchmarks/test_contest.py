from __future__ import annotations

import itertools
from typing import Any

import pytest
from peers import contest
from peers.contest import Contestant
from peers.process import Reply

WORKLOADS = {"pairs": [("Who?", ["text"])] * 100, "corpus": [("Who?", ["text"] * 30)] * 10}
CONTESTANTS = [
    Contestant(name="ours", process="ours", workload="pairs"),
    Contestant(name="ours", process="ours", workload="corpus"),
]


class Pretended:
    """A contestant that takes a second for each query, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.asked: list[tuple[str, int]] = []
        monkeypatch.setattr(contest.time, "perf_counter", lambda: self.now)

    def ask(self, workload: str, *, batch_size: int, limit: int) -> Reply:
        self.now += limit
        self.asked.append((workload, limit))
        return Reply(seconds=limit, cpu_seconds=limit, pairs=limit, versions={}, result=None)


@pytest.mark.parametrize(
    ("limit_s", "rounds"),
    [
        (1000, [(100, 10)] * 3),
        (250, [(100, 10)] * 2),
        (120, [(100, 10)]),
        (55, [(50, 5)]),
        (0, [(8, 1)]),
        (-10, [(8, 1)]),
    ],
)
def test_rounds_are_left_out_or_of_fewer_queries_where_time_is_short(
    limit_s: float, rounds: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    process: Any = Pretended(monkeypatch)
    replies = contest._replies(CONTESTANTS, {"ours": process}, WORKLOADS, 3, limit_s)
    found = [(pairs.pairs, corpus.pairs) for pairs, corpus in zip(*replies.values(), strict=True)]
    assert found == rounds
    measured = process.asked[-2 * len(rounds) :]
    assert measured == list(itertools.chain(*((("pairs", a), ("corpus", b)) for a, b in rounds)))
