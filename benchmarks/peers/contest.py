"""All contestants on one model, in turn in every round: speeds, ratios, agreement, where our time goes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from peers.inputs import Model
from peers.process import Process, Reply
from peers.protocol import Job
from tinyqa_ray.core import storage
from tinyqa_ray.evaluate.squad_metrics import f1

BATCH_SIZES = {"cpu": (1, 16), "cuda": (1, 16, 64, 256)}
"""Of the pipeline."""
LOOP_SIZES = (1, 8, 32)
"""Of optimum's models: 1 is the pipeline, the others are a loop, see ``optimum_calls``."""
_MODULES = {
    "pipeline": "transformers_pipeline",
    "haystack": "haystack_reader",
    "optimum-openvino": "optimum_openvino",
    "optimum-onnx": "optimum_onnx",
}
_PEAKS = {"fp32": "fp32_gflops", "bf16": "bf16_gflops", "int8": "int8_gops"}
_OURS = "tinyqa "
"""How the names of our contestants begin; their precision follows."""
_WARM_UP_QUERIES = {"pairs": 8, "corpus": 1}
F1 = "f1"
"""Name of the workload that is asked once, for the answers; each question has one context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One way to run one workload."""

    name: str
    process: str
    workload: str
    batch_size: int = 1


def compare(
    model: Model,
    job: Job,
    peers: dict[str, str],
    peak: dict[str, float],
    rounds: int,
    limit_s: float,
    golds: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """Measure a model.

    Args:
        model: what all of them run.
        job: device, precision, threads and workloads.
        peers: name of each peer and the Python of its environment.
        peak: ``fp32_gflops`` and ``int8_gops`` of the machine, in 1e9 a second; empty where unknown.
        rounds: how often each contestant is measured, at most.
        limit_s: for starting all, the answers of ``F1`` and the rounds; no round begins that would
            end later, and if the first one would, it is of fewer queries.
        golds: acceptable answers to each question of the workload ``F1``.
    """
    job = {**job, "model": model.folder}
    reference = f"{_OURS}torch {job['precision']}"
    ours = {reference: job}
    for precision, folder in model.exports.items():
        ours[f"{_OURS}export {precision}"] = {**job, "model": folder, "precision": precision.split()[-1]}
    contestants = _contestants([*ours], [*peers], BATCH_SIZES[job["device"]])
    began = time.perf_counter()
    with ExitStack() as stack:
        processes = {name: stack.enter_context(Process("tinyqa_reader", own)) for name, own in ours.items()}
        for name, python in peers.items():
            processes[name] = stack.enter_context(Process(_MODULES[name], job, python))
        texts = {} if model.random else {one: _best_texts(one, processes) for one in contestants}
        limit_s -= time.perf_counter() - began
        replies = _replies(contestants, processes, job["workloads"], rounds, limit_s)
    asked = {one.workload: found[0].pairs for one, found in replies.items()}
    shares = {name: _shares(own, asked["pairs"]) for name, own in ours.items()}
    speeds = {
        workload: {one.name: _speed(replies[one]) for one in contestants if one.workload == workload}
        for workload in job["workloads"]
        if workload != F1
    }
    forced = {one.name: _f1(found, golds) for one, found in texts.items() if one.workload == "pairs"}
    said = {one.name: replies[one][-1].result for one in contestants if one.workload == "pairs"}
    return {
        "model": model.name,
        "random_weights": model.random,
        "pairs": asked,
        "rounds": len(next(iter(replies.values()))),
        "forced_f1": forced,
        "pairs_per_s": speeds,
        "ratio_to_best_peer": {workload: _ratios(of) for workload, of in speeds.items()},
        "agreement": None if model.random else _agreement(reference, said, shares[reference]),
        "tokenise_decode_share": {
            name: round(share["tokenise_decode_share"], 3) for name, share in shares.items()
        },
        "share_of_peak": {
            name: round(share["operations"] / share["model_seconds"] / peak[key] / 1e9, 3)
            for name, share in shares.items()
            if (key := _PEAKS.get(name.split()[-1])) in peak
        },
        "exports": {} if model.random else {name: _report(path) for name, path in model.exports.items()},
        "versions": {one.process: replies[one][0].versions for one in contestants},
    }


def _report(folder: str) -> dict[str, Any]:
    """What the export said of itself: its F1 beside the model's, which the speed is to be read with."""
    report: dict[str, Any] = storage.read_json(storage.join(folder, "_SUCCESS.json"))["report"]
    return report


def _contestants(ours: Sequence[str], peers: Sequence[str], batch_sizes: Sequence[int]) -> list[Contestant]:
    """What is measured, in the order of a round; corpora only by those with a call for them."""
    pairs = [Contestant(name=name, process=name, workload="pairs") for name in ours]
    if "pipeline" in peers:
        pairs += [
            Contestant(name=f"pipeline batch {size}", process="pipeline", workload="pairs", batch_size=size)
            for size in batch_sizes
        ]
    pairs += [
        Contestant(
            name=f"{peer}, {'pipeline' if size == 1 else f'batches of {size}'}",
            process=peer,
            workload="pairs",
            batch_size=size,
        )
        for peer in peers
        if peer.startswith("optimum")
        for size in LOOP_SIZES
    ]
    haystack = ["haystack"] if "haystack" in peers else []
    pairs += [Contestant(name=name, process=name, workload="pairs") for name in haystack]
    return pairs + [Contestant(name=name, process=name, workload="corpus") for name in [*ours, *haystack]]


def _replies(
    contestants: Sequence[Contestant],
    processes: dict[str, Process],
    workloads: Mapping[str, Sequence[Any]],
    rounds: int,
    limit_s: float,
) -> dict[Contestant, list[Reply]]:
    """Each contestant's replies, after a warm-up; one round at least, of fewer queries if time is short."""

    def ask(one: Contestant, limit: int) -> Reply:
        return processes[one.process].ask(one.workload, batch_size=one.batch_size, limit=limit)

    round_s = 0.0
    for one in contestants:
        few = _WARM_UP_QUERIES[one.workload]
        ask(one, few)
        round_s += ask(one, few).seconds * len(workloads[one.workload]) / few
    share = min(1.0, limit_s / round_s)
    limits = {
        name: max(few, math.ceil(share * len(workloads[name]))) for name, few in _WARM_UP_QUERIES.items()
    }
    replies: dict[Contestant, list[Reply]] = {one: [] for one in contestants}
    began = time.perf_counter()
    for number in range(rounds):
        if number and (time.perf_counter() - began) * (number + 1) / number > limit_s:
            break
        for one in contestants:
            replies[one].append(ask(one, limits[one.workload]))
    return replies


def _best_texts(one: Contestant, processes: dict[str, Process]) -> list[str | None]:
    """Answers to the questions of the workload ``F1``."""
    found: list[str | None] = processes[one.process].ask(F1, batch_size=one.batch_size).result
    return found


def _f1(texts: Sequence[str | None], golds: Sequence[Sequence[str]]) -> float:
    """Forced F1, in percent: the questions are answerable, and nobody abstains."""
    each = [
        max(f1(gold, text or "") for gold in acceptable)
        for text, acceptable in zip(texts, golds, strict=True)
    ]
    return round(100.0 * statistics.fmean(each), 2)


def _shares(job: Job, pairs: int) -> dict[str, Any]:
    """Where the time of our reader goes, on the first pairs; each of them is one query."""
    with Process("tinyqa_shares", job) as process:
        process.ask("pairs", limit=_WARM_UP_QUERIES["pairs"])
        shares: dict[str, Any] = process.ask("pairs", limit=pairs).result
    return shares


def _speed(replies: Sequence[Reply]) -> dict[str, float]:
    speeds = [reply.pairs / reply.seconds for reply in replies]
    found = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
    return {name: round(value, 2) for name, value in found.items()}


def _ratios(speeds: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Our median speeds over the best peer's."""
    medians = {name: speed["median"] for name, speed in speeds.items()}
    peers = [name for name in medians if not name.startswith(_OURS)]
    if not peers:
        return {}
    best = max(peers, key=medians.__getitem__)
    return {
        "best_peer": best,
        **{name: round(medians[name] / medians[best], 2) for name in medians if name not in peers},
    }


def _agreement(reference: str, texts: dict[str, list[str | None]], shares: dict[str, Any]) -> dict[str, Any]:
    """Share of pairs on which the best text is that of our reader ``reference``.

    Only pairs of one window count: there all of them ask for the best sum of two logits, while over several
    windows the pipeline compares probabilities of each. Haystack gives the model no token types and knows no
    longest answer, so a model with token types answers it otherwise.
    """
    single = [pair for pair, windows in enumerate(shares["windows_of_pairs"]) if windows == 1]
    found: dict[str, Any] = {"pairs_of_one_window": len(single)}
    for name, answers in texts.items():
        if name != reference and single:
            same = statistics.fmean(answers[pair] == texts[reference][pair] for pair in single)
            found[name] = round(same, 4)
    return found
