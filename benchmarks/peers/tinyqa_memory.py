"""Our answering stage over a corpus far larger than Ray's object store: seconds and memory of each pass."""

from __future__ import annotations

import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil  # Ray brings it
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from peers.inputs import as_it_is
from peers.protocol import Job, Prepare, Query, serve
from peers.tinyqa_stage import as_users_run_it
from tinyqa_ray.answer import answer
from tinyqa_ray.configs import AnswerConfig, CandidateConfig
from tinyqa_ray.core.cluster import quiet

READING = "reading"
"""The part before the first pass: documents and questions become files."""
_SAMPLE_S = 0.1
_CPUS = 4
_ROWS_PER_FILE = 1 << 16


def write_large_corpus(texts: Sequence[str], megabytes: int, folder: Path, seed: int) -> int:
    """Write a made corpus as Parquet; return how many documents it has.

    A made document has as many words as one of ``texts``, each drawn from all words of all texts, behind a
    number of its own: a word that no other document holds. The texts themselves, with their places in
    ``texts`` as ids, are spread among the documents.
    """
    folder.mkdir()
    words = " ".join(texts).split()
    lengths = [len(text.split()) for text in texts]
    total = max(len(texts), megabytes * 1_000_000 * len(texts) // sum(map(len, texts)))
    rng, own = random.Random(seed), {number * total // len(texts): number for number in range(len(texts))}
    for first in range(0, total, _ROWS_PER_FILE):
        ids, bodies = [], []
        for row in range(first, min(first + _ROWS_PER_FILE, total)):
            if row in own:
                ids.append(str(own[row]))
                bodies.append(texts[own[row]])
            else:
                ids.append(f"made-{row}")
                bodies.append(" ".join([f"{row}.", *rng.choices(words, k=rng.choice(lengths))]))
        written = pa.table({"id": ids, "text": bodies})
        pq.write_table(written, folder / f"part-{first // _ROWS_PER_FILE:04d}.parquet")
    return total


def load(job: Job) -> Prepare:
    """The stage over ``job["documents"]``, index in ``index``, ``candidates`` a question, ``store_mb``.

    A query is a question and the id of its own document, which the report counts among what was selected.
    """
    as_users_run_it()

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], dict[str, Any]]:
        kept = tempfile.TemporaryDirectory()
        questions, output = (Path(kept.name, name) for name in ("questions.jsonl", "output"))
        lines = [
            json.dumps({"question": question, "document_id": own}) + "\n" for question, (own,) in queries
        ]
        questions.write_text("".join(lines), encoding="utf-8")
        config = AnswerConfig(
            model=job["model"],
            precision=as_it_is(job["model"]),
            documents=job["documents"],
            questions=str(questions),
            index=job["index"],
            selection=CandidateConfig(candidates=job["candidates"]),
            actors=job["actors"],
            threads=job["actor_threads"],
        )
        ray.init(
            num_cpus=_CPUS,
            object_store_memory=job["store_mb"] * 1_000_000,
            include_dashboard=False,
            log_to_driver=False,
        )
        quiet()

        def run() -> dict[str, Any]:
            watch = Watch()
            with kept, watch:
                report = answer(config, str(output), watch.progress)
            return {"report": asdict(report), "passes": watch.passes}

        return run

    return prepare


class Watch:
    """Samples, pass by pass, the memory of this process, of Ray's, and what lies in the object store."""

    def __init__(self) -> None:
        self.passes: dict[str, dict[str, Any]] = {}
        self._name, self._began = READING, time.perf_counter()
        self._driver = psutil.Process()
        self._workers: dict[str, dict[int, list[float]]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def progress(self, _done: int, _total: int, note: str) -> None:
        """Of the stage: the name of the pass at hand."""
        if note != self._name:
            self._close()
            self._name = note

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        now = time.perf_counter()
        found = self.passes.setdefault(self._name, {})
        found["seconds"] = round(now - self._began, 2)
        peaks = self._workers.get(self._name, {}).values()
        # Of each process: all that is resident, mapped files too, and what is its own.
        found["actors_mb"] = sorted((round(own, 1) for _, own in peaks), reverse=True)
        found["actors_with_mapped_mb"] = sorted((round(whole, 1) for whole, _ in peaks), reverse=True)
        self._began = now

    def _sample(self) -> None:
        whole = ray.cluster_resources()["object_store_memory"]
        while not self._done.wait(_SAMPLE_S):
            name = self._name
            free = ray.available_resources().get("object_store_memory", 0.0)
            self._note(name, "object_store_mb", (whole - free) / 1e6)
            for process in (self._driver, *self._driver.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    memory, kind = process.memory_info(), process.name()
                    total, own = memory.rss / 1e6, (memory.rss - memory.shared) / 1e6
                    if process == self._driver:
                        self._note(name, "driver_mb", own)
                        self._note(name, "driver_with_mapped_mb", total)
                    elif kind.startswith("ray::Map"):
                        peak = self._workers.setdefault(name, {}).setdefault(process.pid, [0.0, 0.0])
                        peak[:] = max(peak[0], total), max(peak[1], own)

    def _note(self, name: str, what: str, value: float) -> None:
        found = self.passes.setdefault(name, {})
        found[what] = round(max(found.get(what, 0.0), value), 1)


if __name__ == "__main__":
    serve(load, ("tinyqa-ray", "ray", "torch", "bm25s"))
