"""Our answering stage as a contestant: from the call of ``answer`` to the published folder, Ray and all."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from peers.inputs import as_it_is
from peers.protocol import Job, Prepare, Query, serve
from tinyqa_ray.answer import answer, work
from tinyqa_ray.answer.answerer import Answerer
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core.cluster import connected

START_UP = ("ray_start_s", "model_check_s", "actor_start_s", "actor_model_load_s", "ray_stop_s")
"""Phases that take as long however many pairs there are."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


def as_users_run_it() -> None:
    """Take away what the benchmark set for all; Ray's actors get the priority that other contestants have."""
    for name in _THREADS:
        os.environ.pop(name, None)
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


class TimedAnswerer(Answerer):
    """An answerer that writes down when it was made and when it worked."""

    def __init__(self, *, times: str, **options: Any) -> None:
        began = time.time()
        super().__init__(**options)
        self.times = Path(times, f"{os.getpid()}-{began}")
        self.made = [began, time.time()]

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """As there."""
        began = time.time()
        made = super().__call__(rows)
        with self.times.open("a") as file:
            file.write(json.dumps([*self.made, began, time.time()]) + "\n")
        return made


def load(job: Job) -> Prepare:
    """The stage with ``job["model"]``, ``actors`` and ``actor_threads``; ``rows_per_shard`` if given."""
    as_users_run_it()
    options = {"rows_per_shard": job["rows_per_shard"]} if "rows_per_shard" in job else {}

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], dict[str, Any]]:
        kept = tempfile.TemporaryDirectory()
        folder = Path(kept.name)
        write_corpus(queries, folder)
        config = AnswerConfig(
            model=job["model"],
            precision=as_it_is(job["model"]),
            documents=str(folder / "documents.jsonl"),
            questions=str(folder / "questions.jsonl"),
            actors=job["actors"],
            threads=job["actor_threads"],
            **options,
        )

        def run() -> dict[str, Any]:
            with kept:
                return timed(config, folder)

        return run

    return prepare


def write_corpus(queries: list[Query], folder: Path) -> None:
    """Write contexts as documents, and each query as a question of its own document."""
    contexts = {context: number for number, context in enumerate(in_order(queries))}
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for context, number in contexts.items():
            file.write(json.dumps({"id": f"document-{number}", "text": context}) + "\n")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for question, (context,) in queries:
            row = {"question": question, "document_id": f"document-{contexts[context]}"}
            file.write(json.dumps(row) + "\n")


def in_order(queries: list[Query]) -> list[str]:
    """The distinct contexts of queries, in the order in which they first come."""
    return list(dict.fromkeys(context for _, contexts in queries for context in contexts))


def timed(config: AnswerConfig, folder: Path) -> dict[str, Any]:
    """Answer, and say what took how long.

    Returns:
        ``seconds`` of everything, ``start_up_s`` of it, and each phase's, one after the other; the stage's
        own report, and ``units``.
    """
    times = folder / "times"
    times.mkdir()
    marks: dict[str, tuple[float, float]] = {}
    wrapped: dict[str, Callable[..., Any]] = {name: _marked(marks, name) for name in ("prepare", "plan")}
    wrapped["Answerer"] = functools.partial(TimedAnswerer, times=str(times))
    before = {name: getattr(work, name) for name in wrapped}
    try:
        for name, own in wrapped.items():
            setattr(work, name, own)
        began = time.time()
        with connected():
            started = time.time()
            report = answer(config, str(folder / "output"))
            published = time.time()
        ended = time.time()
    finally:
        for name, own in before.items():
            setattr(work, name, own)
    units = [json.loads(line) for file in times.iterdir() for line in file.read_text().splitlines()]
    first, loaded = min(each[0] for each in units), min(each[2] for each in units)
    last = max(each[3] for each in units)
    phases = {
        "ray_start_s": started - began,
        "model_check_s": marks["prepare"][0] - started,
        "inputs_s": marks["plan"][1] - marks["prepare"][0],
        "actor_start_s": first - marks["plan"][1],
        "actor_model_load_s": loaded - first,
        "answering_s": last - loaded,
        "publishing_s": published - last,
        "ray_stop_s": ended - published,
    }
    return {
        "seconds": ended - began,
        "start_up_s": sum(phases[name] for name in START_UP),
        "phases": phases,
        "units": len(units),
        "report": asdict(report),
    }


def _marked(marks: dict[str, tuple[float, float]], name: str) -> Callable[..., Any]:
    """A function of the stage that also notes when it began and ended."""
    function = getattr(work, name)

    def call(*given: Any, **named: Any) -> Any:
        began = time.time()
        made = function(*given, **named)
        marks[name] = (began, time.time())
        return made

    return call


if __name__ == "__main__":
    serve(load, ("tinyqa-ray", "ray", "torch", "transformers", "tokenizers"))
