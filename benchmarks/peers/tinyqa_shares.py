"""Where our reader's time goes: its text parts, and its model part against the matrix work."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peers.protocol import Job, Prepare, Query, flat, serve
from peers.tinyqa_reader import MAX_ANSWER_TOKENS
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.spans import readings

REPEATS = 3
TIMED_PAIRS = 30
"""The first pairs; more would take longer than the rounds of a benchmark."""


def matrix_operations(config: Any, window_tokens: list[int]) -> int:
    """Multiplications and additions of an encoder's matrix products over real tokens.

    ``layers x (T x 2(4h^2 + 2hf) + 4T^2 h)`` for a window of T tokens, hidden size h and intermediate
    size f: four projections and the feed-forward pair, then scores and their weighted sum.
    """
    h, f = config.hidden_size, config.intermediate_size
    return sum(
        config.num_hidden_layers * (t * 2 * (4 * h * h + 2 * h * f) + 4 * t * t * h) for t in window_tokens
    )


def load(job: Job) -> Prepare:
    """A reader taken apart: windows, logits and spans, timed one by one beside the whole."""
    reader = Reader.from_pretrained(job["model"], precision=job["precision"], device=job["device"])
    config = pretrained.load_config(job["model"])

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], dict[str, Any]]:
        everything = flat(queries)
        pairs = everything[:TIMED_PAIRS]
        cut_from = reader.windower.windows(everything).pair

        def run() -> dict[str, Any]:
            took: dict[str, list[float]] = {"whole": [], "text": [], "model": []}
            for _ in range(REPEATS):
                marks = [time.perf_counter()]
                reader.answer_many(pairs, threshold=1.0, max_answer_tokens=MAX_ANSWER_TOKENS)
                marks.append(time.perf_counter())
                windows = reader.windower.windows(pairs)
                marks.append(time.perf_counter())
                starts, ends = reader.engine.logits(windows)
                marks.append(time.perf_counter())
                readings(windows, starts, ends, max_answer_tokens=MAX_ANSWER_TOKENS)
                marks.append(time.perf_counter())
                whole, cut, model, decoded = np.diff(marks).tolist()
                took["whole"].append(whole)
                took["text"].append(cut + decoded)
                took["model"].append(model)
            return {
                "tokenise_decode_share": statistics.median(took["text"]) / statistics.median(took["whole"]),
                "model_seconds": statistics.median(took["model"]),
                "operations": matrix_operations(config, windows.lengths.tolist()),
                "windows_of_pairs": np.bincount(cut_from, minlength=len(everything)).tolist(),
            }

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ())
