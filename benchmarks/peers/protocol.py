"""What a contestant's process is told and says; of the standard library only, as every peer imports it.

The job file on the command line holds the model, the threads and the workloads. Then each line on stdin is a
request, and each line on stdout its reply. Whatever else a library prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

Query = tuple[str, list[str]]
"""A question and the contexts it is asked of."""
Job = dict[str, Any]
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""torch's name of each precision."""
Prepare = Callable[[list[Query], int], Callable[[], Any]]
"""Queries and a batch size → what is timed. Inputs take the form of the contestant's own API beforehand."""


def serve(load: Callable[[Job], Prepare], packages: Sequence[str]) -> None:
    """Load the contestant, then answer requests until stdin ends.

    Args:
        load: makes the contestant from a job (``model``, ``device``, ``precision``, ``threads``,
            ``workloads``).
        packages: distributions whose versions go into every reply.
    """
    with os.fdopen(os.dup(1), "w", buffering=1) as replies:
        os.dup2(2, 1)
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        _set_threads(job["threads"])
        prepare = load(job)
        versions = {name: metadata.version(name) for name in packages}
        for line in sys.stdin:
            request = json.loads(line)
            queries = [(question, contexts) for question, contexts in job["workloads"][request["workload"]]]
            queries = queries[: request["limit"]]
            run = prepare(queries, request["batch_size"])
            began, cpu_began = time.perf_counter(), time.process_time()
            result = run()
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            pairs = sum(len(contexts) for _, contexts in queries)
            took = {"seconds": seconds, "cpu_seconds": cpu_seconds}
            reply = {**took, "pairs": pairs, "versions": versions, "result": result}
            replies.write(json.dumps(reply) + "\n")


def flat(queries: list[Query]) -> list[tuple[str, str]]:
    """The (question, context) pairs of queries, in order."""
    return [(question, context) for question, contexts in queries for context in contexts]


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
