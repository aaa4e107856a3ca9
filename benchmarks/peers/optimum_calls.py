"""How models of optimum are asked: under the pipeline of transformers, or in a loop of batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import pipeline

from peers.plain_loop import Forward, answers
from peers.protocol import Prepare, Query, flat

OPTIONS = {"max_seq_len": 384, "doc_stride": 128, "max_answer_len": 30, "align_to_words": False}


def prepared(model: Any, tokenizer: Any, forward: Forward) -> Prepare:
    """A batch of 1 is the pipeline's; a loop does larger ones, as the pipeline pads their windows to 384."""
    ask = pipeline("question-answering", model=model, tokenizer=tokenizer)

    def prepare(queries: list[Query], batch_size: int) -> Callable[[], list[str | None]]:
        pairs = flat(queries)

        def run() -> list[str | None]:
            if batch_size > 1:
                return answers(pairs, tokenizer, forward, batch_size)
            found = ask(
                question=[question for question, _ in pairs],
                context=[context for _, context in pairs],
                **OPTIONS,
            )
            return [one["answer"] for one in (found if isinstance(found, list) else [found])]

        return run

    return prepare


def calibration_windows(tokenizer: Any, pairs: list[tuple[str, str]]) -> list[dict[str, list[int]]]:
    """Token ids, mask and types of pairs, cut to one window each."""
    made = tokenizer(
        [question for question, _ in pairs],
        [context for _, context in pairs],
        truncation="only_second",
        max_length=384,
    )
    return [{name: made[name][row] for name in made} for row in range(len(pairs))]
