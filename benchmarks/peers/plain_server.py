"""The server that people write: FastAPI and a transformers model in fp32, one request at a time.

It answers ``POST /v1/answer`` of one question and one context, which it cuts to one window. It pads nothing:
the quick form of its kind.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

_LONGEST_ANSWER = 30


class Request(BaseModel):
    """A question and its context."""

    question: str
    contexts: list[str]


def create(folder: str) -> FastAPI:
    """The application over a model folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    app = FastAPI()

    @app.post("/v1/answer")
    # async: one at a time, and from one thread, where torch keeps one pool of its own.
    async def answer(request: Request) -> dict[str, Any]:
        with torch.inference_mode():
            (context,) = request.contexts
            inputs = tokenizer(
                request.question,
                context,
                truncation="only_second",
                max_length=384,
                return_offsets_mapping=True,
                return_tensors="pt",
            )
            offsets = inputs.pop("offset_mapping")[0]
            output = model(**inputs)
            hidden = torch.tensor([side != 1 for side in inputs.sequence_ids(0)])
            start = output.start_logits[0].masked_fill(hidden, -torch.inf)
            end = output.end_logits[0].masked_fill(hidden, -torch.inf)
            allowed = torch.ones(len(start), len(start)).triu().tril(_LONGEST_ANSWER - 1).bool()
            scores = torch.where(allowed, start[:, None] + end[None, :], -torch.inf)
            first, last = divmod(int(scores.argmax()), len(offsets))
            begin, stop = int(offsets[first][0]), int(offsets[last][1])
            return {"answer": context[begin:stop], "start": begin, "end": stop}

    return app


if __name__ == "__main__":
    model, port, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    uvicorn.run(create(model), host="127.0.0.1", port=int(port), log_level="error")
