"""``pipeline("question-answering")`` of transformers 4 as a contestant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import pipeline

from peers.protocol import DTYPES, Job, Prepare, Query, flat, serve

OPTIONS = {"max_seq_len": 384, "doc_stride": 128, "max_answer_len": 30, "align_to_words": False}
"""Windows and answers as long as ours; token spans as they are, which is also the faster choice."""


def load(job: Job) -> Prepare:
    """A pipeline in the job's precision, whatever type the weights are stored in."""
    dtype = getattr(torch, DTYPES[job["precision"]])
    answer = pipeline("question-answering", model=job["model"], device=job["device"], dtype=dtype)

    def prepare(queries: list[Query], batch_size: int) -> Callable[[], list[str]]:
        pairs = flat(queries)
        questions, contexts = [pair[0] for pair in pairs], [pair[1] for pair in pairs]

        def run() -> list[str]:
            found = answer(question=questions, context=contexts, batch_size=batch_size, **OPTIONS)
            return [one["answer"] for one in (found if isinstance(found, list) else [found])]

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ("transformers", "torch", "tokenizers"))
