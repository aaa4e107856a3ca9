"""Rows per second of the Ray Data processor beside the bare reader, and its memory on a large Dataset.

    python benchmarks/ray_data.py --data dev.json --output ray_data.json

``speed``: the same rows by the reader in this process, and by the processor with one actor and with two; what
a pipeline takes to start is left out, by taking the difference of a long and a short Dataset. All are
measured in turn in each round. ``memory``: a Dataset ten times as large as the object store goes through the
processor; what a row carries along is large, what is asked of it is short.
"""

import argparse
import contextlib
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import ray
from machine import machine, show
from ray.data import Dataset

from tinyqa_ray.core import bundled
from tinyqa_ray.core.cluster import quiet
from tinyqa_ray.core.machine import usable_cores
from tinyqa_ray.datasets import squad
from tinyqa_ray.ray_data import AnswerBatches, AnswerProcessorConfig, build_answer_processor

STORE_BYTES = 80 << 20
"""Ray takes no less than 75 MiB."""
CARRIED_BYTES = 64 << 10
"""What a row of ``memory`` carries along."""


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=bundled.MODEL)
    parser.add_argument(
        "--data", default=bundled.asset("squad2_dev.json"), help="SQuAD JSON with the questions"
    )
    parser.add_argument(
        "--rows", type=int, default=3000, help="rows of the short Dataset; the long one has 4 times"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-rows", type=int, default=12_800, help="0 leaves the memory out")
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    ray.init(
        num_cpus=usable_cores() + 2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    quiet()
    figures: dict[str, Any] = {"model": arguments.model, "rows": arguments.rows, "speed": speed(arguments)}
    if arguments.memory_rows:
        figures["memory"] = memory(arguments)
    show("ray_data", figures)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps({**figures, "machine": machine()}, indent=1) + "\n")


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rows per second of each contestant, and its ratio to the reader in this process."""
    cores = usable_cores()
    pairs = [
        {"question": question.question, "context": paragraph.context}
        for paragraph in squad.read_squad(arguments.data)
        for question in paragraph.questions
    ]
    rows = [pairs[number % len(pairs)] for number in range(4 * arguments.rows)]
    short, long = pa.Table.from_pylist(rows[: arguments.rows]), pa.Table.from_pylist(rows)
    bare = AnswerBatches(AnswerProcessorConfig(model=arguments.model, threads=cores))
    contestants: dict[str, Any] = {"bare": lambda table: _in_batches(bare, table)}
    for actors in (1, 2):
        threads = max(1, cores // actors)
        config = AnswerProcessorConfig(
            model=arguments.model, concurrency=actors, threads=threads, num_cpus=threads, rows_per_batch=256
        )
        made = build_answer_processor(config)
        contestants[f"{actors} actor{'s' * (actors > 1)}"] = lambda table, made=made: _count(
            made(ray.data.from_arrow(table).repartition(max(2, table.num_rows // 256)))
        )
    assert contestants["bare"](short) == short.num_rows  # torch's first forwards are slow
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, run in contestants.items():
            seconds = []
            for table in (short, long):
                began = time.perf_counter()
                assert run(table) == table.num_rows
                seconds.append(time.perf_counter() - began)
            taken[name].append(3 * arguments.rows / (seconds[1] - seconds[0]))
    rates = {name: statistics.median(each) for name, each in taken.items()}
    return {
        name: {"rows_per_s": round(rate, 1), "of_bare": round(rate / rates["bare"], 2)}
        for name, rate in rates.items()
    }


def memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """Most memory of the driver and of any worker, at a tenth of the Dataset and at all of it."""

    def fill(batch: dict[str, Any]) -> dict[str, Any]:
        ids = batch["id"]
        carried = [np.random.default_rng(int(each)).bytes(CARRIED_BYTES) for each in ids]
        return {
            "id": ids,
            "question": np.array(["When do owls hunt?"] * len(ids), dtype=object),
            "context": np.array([f"Owl {each} hunts at night." for each in ids], dtype=object),
            "carried": np.array(carried, dtype=object),
        }

    config = AnswerProcessorConfig(model=arguments.model, threads=1, num_cpus=1, rows_per_batch=128)
    found = {}
    for rows in (arguments.memory_rows // 10, arguments.memory_rows):
        source = ray.data.range(rows, override_num_blocks=max(4, rows // 128)).map_batches(
            fill, batch_size=128
        )
        with Peak() as peak:
            assert _count(build_answer_processor(config)(source)) == rows
        found[str(rows)] = {
            "megabytes": round(rows * CARRIED_BYTES / 1e6),
            "times_the_store": round(rows * CARRIED_BYTES / STORE_BYTES, 1),
            "driver_mb": round(peak.driver / 1e6),
            "largest_worker_mb": round(peak.worker / 1e6),
        }
    return found


class Peak:
    """The most memory of this process and of any of Ray's workers, looked at ten times a second."""

    def __enter__(self) -> "Peak":
        self.driver = self.worker = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            self.driver = max(self.driver, own.memory_info().rss)
            for child in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):  # it has ended
                    if child.cmdline()[0].startswith("ray::"):
                        self.worker = max(self.worker, child.memory_full_info().uss)


def _in_batches(bare: AnswerBatches, table: pa.Table) -> int:
    return sum(bare(table.slice(first, 256)).num_rows for first in range(0, table.num_rows, 256))


def _count(dataset: Dataset) -> int:
    return sum(batch.num_rows for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


if __name__ == "__main__":
    main()
