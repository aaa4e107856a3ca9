"""A faster ``pipeline("question-answering")``, as transformers had it up to 5.2.

from tinyqa_ray import pipeline

qa = pipeline("question-answering", model="deepset/tinyroberta-squad2")
qa(question="Who built it?", context="Edith Marlow built it in 1871.")
# {"score": …, "start": 0, "end": 12, "answer": "Edith Marlow"}
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windows, token_budget_batches
from tinyqa_ray.engines import choose
from tinyqa_ray.engines.devices import pick_device
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader.reader import chunks
from tinyqa_ray.reader.transformers_pipeline.inputs import PipelineOptions, paired
from tinyqa_ray.reader.transformers_pipeline.reading import PipelineReading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Result = dict[str, Any]

_TASK = "question-answering"


def pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel = bundled.MODEL,
    *,
    tokenizer: Any = None,
    device: str | int | torch.device | None = None,
    precision: str | None = None,
    **defaults: Any,
) -> QuestionAnsweringPipeline:
    """Make a question-answering pipeline.

    Args:
        task: ``question-answering``, the only one.
        model: folder, URL of a folder, hub id, a folder that ``tinyqa export`` wrote, ``tinyqa-mini`` or
            ``tinyqa-mini-int8`` (the package's own model and its int8 form), or a loaded model.
        tokenizer: a fast tokenizer, or the name of one; the model's own when not given.
        device: a name as of ``Reader.from_pretrained``, torch device, or number of a GPU (-1 is the CPU);
            when not given, the GPU where there is one, or the device that a loaded model is on.
        precision: see ``Reader.from_pretrained``; when not given, the export's own, else fp32, so that the
            scores are those of transformers.
        **defaults: options for every call that does not set them, see ``PipelineOptions``.

    Raises:
        InputError: another task, an unknown keyword, a loaded model without a tokenizer, or what
            ``Reader.from_pretrained`` refuses.
    """
    if task != _TASK:
        raise InputError(f"unknown task {task!r}; the only one is {_TASK!r}")
    options = PipelineOptions().changed(defaults)
    engine: Engine
    if isinstance(model, (str, os.PathLike)):
        name = os.fspath(model)
        tokenizer = name if tokenizer is None else tokenizer
        precision = precision or ("auto" if is_exported(name) else "fp32")
        engine, config = choose.load(name, device=_device_name(device), precision=precision)
    elif tokenizer is None:
        raise InputError("a loaded model comes without its tokenizer; give it with tokenizer=")
    elif precision is not None:
        raise InputError(f"precision is {precision!r}, but a loaded model keeps its own; leave it out")
    else:
        engine = TorchEngine(model, device=_device_name(model.device if device is None else device))
        config = model.config
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = pretrained.load_tokenizer(os.fspath(tokenizer))
    return QuestionAnsweringPipeline(engine, config, tokenizer, options)


class QuestionAnsweringPipeline:
    """Answers questions as transformers' pipeline of that name did: the same spans, the same scores.

    As in transformers, a list of one item gives the same result as the item alone, and ``top_k`` above 1
    gives a dict, not a list, where there is a single answer.

    Three differences are on purpose. A span without text is never an answer. A context in which the
    tokenizer finds no token (spaces alone) gets the empty answer, with score 0 unless
    ``handle_impossible_answer``. Generators are read to their end before the first answer.
    """

    task = _TASK

    def __init__(self, engine: Engine, config: Any, tokenizer: Any, options: PipelineOptions) -> None:
        """See ``pipeline``.

        Args:
            engine: what runs the model.
            config: the model's configuration.
            tokenizer: its fast tokenizer.
            options: values of the options that a call does not set.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = options
        self._reading = PipelineReading(config, tokenizer, options)

    @property
    def model(self) -> PreTrainedModel | None:
        """The torch model; None where the model is an export."""
        return getattr(self.engine, "model", None)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return getattr(self.engine, "device", None) or pick_device("cpu")

    def __call__(
        self,
        *inputs: Any,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        data: Any = None,
        **options: Any,
    ) -> Any:
        """Answer questions, each from its context.

        Args:
            *inputs: a dict with ``question`` and ``context``, several such dicts, or a list of them; or two
                texts, the question and the context.
            question: a question, or several.
            context: their context, or one for each.
            data: another way to give one positional input.
            **options: see ``PipelineOptions``; None stands for the pipeline's own value.

        Returns:
            ``{"score", "start", "end", "answer"}`` for one question, with
            ``context[start:end] == answer`` in Python characters and the score a probability (a sum of
            them where a text was found more than once). When ``top_k`` is above 1 and there are several
            answers, a list of such dicts, best first. For several questions, a list with one of these
            results for each, in order.

        Raises:
            InputError: an empty question or context, inputs in another form, lists of unequal lengths,
                an unknown option, or a question that leaves no room for its context.
        """
        chosen = self.options.changed(options)
        pairs, single = paired(inputs, question, context, data)
        found = []
        for chunk in chunks(pairs):
            windows = self._reading.windows(chunk, chosen)
            runs = self.engine.run(windows, self._batches(windows, chosen.batch_size))
            for answers in self._reading.answers(chunk, windows, runs, chosen):
                found.append(answers[0] if len(answers) == 1 else answers)  # noqa: PERF401
        return found[0] if single else found

    def _batches(self, windows: Windows, batch_size: int | None) -> Iterator[NDArray[np.int64]]:
        rows = batch_size or len(windows)
        for batch in token_budget_batches(windows.lengths, self.engine.max_batch_tokens):
            for first in range(0, len(batch), rows):
                yield batch[first : first + rows]


def _device_name(device: str | int | torch.device | None) -> str:
    if isinstance(device, int):
        return f"cuda:{device}" if device >= 0 else "cpu"
    return "auto" if device is None else str(device)
