"""Haystack 1's ``augment_squad`` as a contestant: what it does to each paragraph, without files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from haystack.utils.augment_squad import augment, load_glove
from transformers import AutoModelForMaskedLM, AutoTokenizer

from peers.protocol import Job, Prepare, Query, serve


def load(job: Job) -> Prepare:
    """The masked LM, its slow tokenizer and the word vectors, as ``augment_squad`` loads them."""
    model = AutoModelForMaskedLM.from_pretrained(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"], use_fast=False)
    word_to_id, id_to_word, vectors = load_glove(Path(job["word_vectors"]))

    def prepare(queries: list[Query], batch_size: int) -> Callable[[], int]:
        contexts = [context for _, texts in queries for context in texts]

        def run() -> int:
            return sum(
                len(
                    augment(
                        word_to_id,
                        id_to_word,
                        vectors,
                        model,
                        tokenizer,
                        context,
                        multiplication_factor=job["copies"],
                        word_possibilities=job["candidates"],
                        replace_probability=job["replace_probability"],
                        batch_size=batch_size,
                    )
                )
                for context in contexts
            )

        return run

    return prepare


if __name__ == "__main__":
    serve(load, ("farm-haystack", "transformers", "torch", "tokenizers"))
