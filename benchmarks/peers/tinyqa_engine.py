"""Our engine alone as a contestant: the windows of all pairs are there, and only the model works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peers.protocol import Job, Prepare, Query, flat, serve
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.reader import chunks


def load(job: Job) -> Prepare:
    """An engine, given windows in chunks as ``Reader.read`` makes them."""
    reader = Reader.from_pretrained(job["model"])

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], dict[str, Any]]:
        pairs = flat(queries)
        made = [reader.windower.windows(chunk) for chunk in chunks(pairs)]

        def run() -> dict[str, Any]:
            for windows in made:
                reader.engine.logits(windows)
            return {"windows": sum(len(windows.lengths) for windows in made), "engine": reader.engine.name}

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ("tinyqa-ray", "torch", "transformers", "tokenizers"))
