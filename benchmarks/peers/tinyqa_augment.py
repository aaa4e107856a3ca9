"""Our augmentation as a contestant: what an actor does to a shard, without Ray and files."""

from __future__ import annotations

from collections.abc import Callable

from peers.protocol import Job, Prepare, Query, serve
from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.datasets import squad


def load(job: Job) -> Prepare:
    """An augmenter of ``job["config"]``, over neighbours that were computed before, as in the stage."""
    config = AugmentConfig(**job["config"])
    augmenter = Augmenter(config, job["neighbours"])
    paragraphs = {paragraph.context: paragraph for paragraph in squad.read_squad(config.data)}

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], int]:
        rows = squad.to_table([paragraphs[context] for _, contexts in queries for context in contexts])

        def run() -> int:
            made, _ = augmenter(rows)
            return int(made.num_rows - rows.num_rows)

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ("tinyqa-ray", "torch", "transformers", "tokenizers"))
