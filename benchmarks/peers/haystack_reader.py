"""Haystack's ``TransformersExtractiveReader`` as a contestant: one call a query, over all its documents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from haystack import Document
from haystack.utils import ComponentDevice
from haystack_integrations.components.readers.transformers import TransformersExtractiveReader

from peers.protocol import DTYPES, Job, Prepare, Query, serve


def load(job: Job) -> Prepare:
    """A reader in the job's precision, whatever type the weights are stored in, that ranks least."""
    reader = TransformersExtractiveReader(
        job["model"],
        device=ComponentDevice.from_str(job["device"]),
        max_seq_length=384,
        stride=128,
        answers_per_seq=1,
        no_answer=False,
        model_kwargs={"dtype": getattr(torch, DTYPES[job["precision"]])},
    )
    reader.warm_up()

    def prepare(queries: list[Query], _batch_size: int) -> Callable[[], list[str | None]]:
        asked = [(question, [Document(content=text) for text in contexts]) for question, contexts in queries]

        def run() -> list[str | None]:
            texts: list[str | None] = []
            for question, documents in asked:
                found = reader.run(question, documents, top_k=len(documents))["answers"]
                best: dict[str, str] = {}
                for answer in found:
                    best.setdefault(answer.document.id, answer.data)
                texts += [best.get(document.id) for document in documents]
            return texts

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ("transformers-haystack", "haystack-ai", "transformers", "torch", "tokenizers"))
