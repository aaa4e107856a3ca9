"""The answering stage beside its engine and its peers, beside ten times the work, and by two actors."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from peers.contest import BATCH_SIZES
from peers.process import Process, Reply
from peers.protocol import Job, Query
from peers.tinyqa_stage import START_UP, in_order

Replies = dict[str, list[Reply]]
GROWTH = 10
_OWN = {"stage": "tinyqa_stage", "reader": "tinyqa_reader", "engine": "tinyqa_engine"}
_PEERS = {"pipeline": "transformers_pipeline", "haystack": "haystack_reader"}
_WARM_UP = 8
_UNIT_PAIRS = 256
"""Pairs of a unit where actors are compared: enough units for two of them."""


def speed(
    ours: dict[str, str], job: Job, peers: dict[str, str], *, peer_pairs: int, rounds: int, limit_s: float
) -> dict[str, Any]:
    """Pairs per second of the stage, of its reader and of its engine alone, and of the peers.

    Args:
        ours: folders of the same model, by precision; the first is the peers' too.
        job: ``threads``, and ``workloads`` with ``pairs``, in an order drawn by chance.
        peers: name of each peer and the Python of its environment.
        peer_pairs: the first pairs, that peers are asked.
        rounds: how often each is measured, at most.
        limit_s: no round begins that would end later.
    """
    queries = job["workloads"]["pairs"]
    # The stage takes pairs by document, however they come; so do the reader and the engine here.
    place = {context: number for number, context in enumerate(in_order(queries))}
    by_document = {"pairs": sorted(queries, key=lambda query: place[query[1][0]])}
    alone = {**job, "device": "cpu", "precision": "fp32", "model": next(iter(ours.values()))}
    asks: dict[str, Callable[[], Reply]] = {}
    with ExitStack() as stack:
        for precision, folder in ours.items():
            own = {**_actors(job, 1, job["threads"]), "workloads": by_document, "model": folder}
            own |= {"device": "cpu", "precision": "auto"}
            for kind, module in _OWN.items():
                process = stack.enter_context(Process(module, own))
                asks[f"{kind}, {precision}"] = partial(process.ask, "pairs")
        for name, python in peers.items():
            process = stack.enter_context(Process(_PEERS[name], alone, python))
            for size in BATCH_SIZES["cpu"] if name == "pipeline" else (1,):
                ask = partial(process.ask, "pairs", limit=peer_pairs, batch_size=size)
                asks[f"{name}, batch {size}" if name == "pipeline" else name] = ask
        replies = measured(asks, rounds, limit_s)
    stages = {name: _stage(every) for name, every in replies.items() if name.startswith("stage")}
    speeds = {name: _spread([each.pairs / each.seconds for each in every]) for name, every in replies.items()}
    speeds |= {name: figures["pairs_per_s"] for name, figures in stages.items()}
    medians = {name: found["median"] for name, found in speeds.items()}
    best = max((name for name in medians if name.split(",")[0] in peers), key=medians.__getitem__, default="")
    return {
        "pairs": len(queries),
        "mean_characters": _mean_characters(queries),
        "peer_pairs": min(peer_pairs, len(queries)),
        "peer_mean_characters": _mean_characters(queries[:peer_pairs]),
        "rounds": len(next(iter(replies.values()))),
        "pairs_per_s": speeds,
        "stages": stages,
        "share_of_engine": {precision: _shares(replies, precision) for precision in ours},
        "best_peer": best,
        "ratio_to_best_peer": {name: round(medians[name] / medians[best], 2) for name in stages if best},
        "versions": {name: every[0].versions for name, every in replies.items()},
    }


def growth(model: str, job: Job, queries: Sequence[Query], *, rounds: int, limit_s: float) -> dict[str, Any]:
    """Seconds of the stage over some pairs, and over ten copies of their documents and questions.

    Args:
        model: folder.
        job: as in ``speed``.
        queries: the pairs.
        rounds: as in ``speed``.
        limit_s: as in ``speed``.
    """
    # Numbers of two digits: the copies are as long as the first.
    copies = [[(q, [f"{10 + copy} {text}"]) for q, (text,) in queries] for copy in range(GROWTH)]
    workloads = {"1x": copies[0], f"{GROWTH}x": [pair for copy in copies for pair in copy]}
    own = {**_actors(job, 1, job["threads"]), "model": model, "workloads": workloads}
    with Process(_OWN["stage"], own) as process:
        replies = measured({name: partial(process.ask, name) for name in workloads}, rounds, limit_s)
    runs = {name: _stage(every) for name, every in replies.items()}
    small, large = runs.values()
    return {
        "pairs": [len(each) for each in workloads.values()],
        "rounds": len(next(iter(replies.values()))),
        "runs": runs,
        "times_as_long": round(large["seconds"] / small["seconds"], 2),
        "times_as_long_without_start_up": round(
            large["seconds_without_start_up"] / small["seconds_without_start_up"], 2
        ),
    }


def actors(model: str, job: Job, *, rounds: int, limit_s: float) -> dict[str, Any]:
    """Seconds of the stage by one actor and by two that share the threads; and by one with half of them."""
    threads = max(2, job["threads"])
    splits = [(1, threads), (2, threads // 2), (1, threads // 2)]
    names = [f"{count} x {each} threads" for count, each in splits]
    with ExitStack() as stack:
        asks = {}
        for name, (count, each) in zip(names, splits, strict=True):
            own = {**_actors(job, count, each), "model": model, "rows_per_shard": _UNIT_PAIRS}
            asks[name] = partial(stack.enter_context(Process(_OWN["stage"], own)).ask, "pairs")
        replies = measured(asks, rounds, limit_s)
    runs = {name: _stage(every) for name, every in replies.items()}
    rates = [runs[name]["pairs_per_s_without_start_up"]["median"] for name in names]
    return {
        "pairs": len(job["workloads"]["pairs"]),
        "rounds": len(next(iter(replies.values()))),
        "runs": runs,
        "two_to_one_with_all_threads": round(rates[1] / rates[0], 2),
        "two_to_one_with_half_of_them": round(rates[1] / rates[2], 2),
    }


def measured(asks: Mapping[str, Callable[..., Reply]], rounds: int, limit_s: float) -> Replies:
    """Replies of all, in turn in every round, after a warm-up."""
    for ask in asks.values():
        ask(limit=_WARM_UP)
    replies: Replies = {name: [] for name in asks}
    began = time.perf_counter()
    for number in range(rounds):
        if (time.perf_counter() - began) * (number + 1) > limit_s * max(number, 1):
            break
        for name, ask in asks.items():
            replies[name].append(ask())
    return replies


def _actors(job: Job, count: int, threads: int) -> Job:
    return {**job, "actors": count, "actor_threads": threads}


def _stage(replies: Sequence[Reply]) -> dict[str, Any]:
    """What the stage took, start and stop of Ray and of the model apart; medians over the rounds."""
    runs = [reply.result for reply in replies]
    pairs, documents = replies[0].pairs, runs[0]["report"]["documents"]
    whole = [run["seconds"] for run in runs]
    rest = [run["seconds"] - run["start_up_s"] for run in runs]
    phases = {
        name: round(statistics.median(run["phases"][name] for run in runs), 2) for name in runs[0]["phases"]
    }
    return {
        "documents": documents,
        "units": runs[0]["units"],
        "seconds": round(statistics.median(whole), 2),
        "seconds_without_start_up": round(statistics.median(rest), 2),
        "start_up_share": round(statistics.median(run["start_up_s"] / run["seconds"] for run in runs), 3),
        "pairs_per_s": _spread([pairs / each for each in whole]),
        "documents_per_s": _spread([documents / each for each in whole]),
        "pairs_per_s_without_start_up": _spread([pairs / each for each in rest]),
        "documents_per_s_without_start_up": _spread([documents / each for each in rest]),
        "phases": phases,
        "start_up_phases": START_UP,
        "errors": runs[0]["report"]["errors"],
    }


def _shares(replies: Replies, precision: str) -> dict[str, float]:
    """Speeds to that of the bare engine in the same round, medians."""
    stages, readers, engines = (replies[f"{kind}, {precision}"] for kind in _OWN)
    shares: dict[str, list[float]] = {}
    for stage, reader, engine in zip(stages, readers, engines, strict=True):
        run = stage.result
        took = {
            "stage": run["seconds"],
            "stage_without_start_up": run["seconds"] - run["start_up_s"],
            "answering_alone": run["phases"]["answering_s"],
            "reader": reader.seconds,
        }
        for name, seconds in took.items():
            shares.setdefault(name, []).append(engine.seconds / seconds)
    return {name: round(statistics.median(every), 3) for name, every in shares.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 2) for name, value in found.items()}


def _mean_characters(queries: Sequence[Query]) -> float:
    return round(statistics.fmean(len(text) for _, contexts in queries for text in contexts), 1)
