"""Our reader as a contestant."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from peers.protocol import Job, Prepare, Query, flat, serve
from tinyqa_ray.reader import Reader

MAX_ANSWER_TOKENS = 30


def load(job: Job) -> Prepare:
    """A reader that never abstains, as the peers do not."""
    reader = Reader.from_pretrained(job["model"], precision=job["precision"], device=job["device"])

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], list[str | None]]:
        pairs = flat(queries)

        def run() -> list[str | None]:
            found = reader.answer_many(pairs, threshold=1.0, max_answer_tokens=MAX_ANSWER_TOKENS)
            return [answers[0].answer for answers in found]

        return run

    return prepare


if __name__ == "__main__":
    exports = ["openvino"] if importlib.util.find_spec("openvino") else []
    serve(load, ["tinyqa-ray", "torch", "transformers", "tokenizers", *exports])
