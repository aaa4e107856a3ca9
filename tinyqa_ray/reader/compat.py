"""``pipeline("question-answering")`` as transformers had it up to 5.2, faster.

from tinyqa_ray import pipeline

qa = pipeline("question-answering", model="deepset/tinyroberta-squad2")
qa(question="Who built it?", context="Edith Marlow built it in 1871.")
# {"score": …, "start": 0, "end": 12, "answer": "Edith Marlow"}
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray import models
from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.engines import Engine, TorchEngine, pick_device
from tinyqa_ray.errors import InputError
from tinyqa_ray.reader.loading import load_engine
from tinyqa_ray.reader.openvino import is_exported
from tinyqa_ray.reader.pipeline_inputs import Pair, PipelineOptions, paired
from tinyqa_ray.reader.pipeline_spans import character_spans, context_masks, pooled, top_spans
from tinyqa_ray.reader.reader import chunks
from tinyqa_ray.windows import Windower, Windows, token_budget_batches

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Result = dict[str, Any]

_TASK = "question-answering"


def pipeline(
    task: str,
    model: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: Any = None,
    device: str | int | torch.device | None = None,
    precision: str | None = None,
    **defaults: Any,
) -> QuestionAnsweringPipeline:
    """Make a question-answering pipeline.

    Args:
        task: ``question-answering``, the only one.
        model: folder, URL of a folder, hub id, a folder that ``tinyqa export`` wrote, or a loaded model.
        tokenizer: a fast tokenizer, or the name of one; the model's own when not given.
        device: name, torch device, or number (-1 is the CPU); when not given the GPU where there is
            one, and for a loaded model the device it is on.
        precision: see ``Reader.from_pretrained``; fp32, or the export's own, when not given, so that the
            scores are those of transformers.
        **defaults: options of every call, see ``PipelineOptions``.

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
        engine, config = load_engine(name, device=_device_name(device), precision=precision)
    elif tokenizer is None:
        raise InputError("a loaded model comes without its tokenizer; give it with tokenizer=")
    elif precision is not None:
        raise InputError(f"precision is {precision!r}, but a loaded model keeps its own; leave it out")
    else:
        engine = TorchEngine(model, device=_device_name(model.device if device is None else device))
        config = model.config
    if isinstance(tokenizer, (str, os.PathLike)):
        tokenizer = models.load_tokenizer(os.fspath(tokenizer))
    return QuestionAnsweringPipeline(engine, config, tokenizer, options)


class QuestionAnsweringPipeline:
    """Answers questions as transformers' pipeline of that name did: the same spans, the same scores.

    Like there, a list of one item gives what the item alone gives, and ``top_k`` above 1 gives a dict
    where there is a single answer.

    Where it differs, on purpose: spans of no text are no answers. A context in which the tokenizer sees
    nothing (spaces alone) gets the empty answer, of score 0 unless ``handle_impossible_answer``.
    Generators are read to their end before the first answer.
    """

    task = _TASK

    def __init__(self, engine: Engine, config: Any, tokenizer: Any, options: PipelineOptions) -> None:
        """See ``pipeline``.

        Args:
            engine: what runs the model.
            config: the model's configuration.
            tokenizer: its fast tokenizer.
            options: what calls do not set.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.options = options
        self._config = config
        self._windower = Windower(tokenizer, self._window(options), cut_questions=False)

    @property
    def model(self) -> PreTrainedModel | None:
        """The torch model that answers; None where an export does."""
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
            *inputs: a dict with ``question`` and ``context``; several, or a list of them; or two texts,
                the question and the context.
            question: a question, or several.
            context: their context, or one for each.
            data: the same as one positional input.
            **options: see ``PipelineOptions``; None is the pipeline's own.

        Returns:
            ``{"score", "start", "end", "answer"}`` for one question, with
            ``context[start:end] == answer`` in Python characters and the score a probability (a sum of
            them where a text was found more than once). A list of them, best first, when ``top_k`` is
            above 1 and there are several. One of either for each of several questions, in order.

        Raises:
            InputError: an empty question or context, inputs in another form, lists of unequal lengths,
                an unknown option, or a question that leaves no room for its context.
        """
        chosen = self.options.changed(options)
        pairs, single = paired(inputs, question, context, data)
        windower = self._windower.resized(self._window(chosen))
        found = [
            answers[0] if len(answers) == 1 else answers
            for chunk in chunks(pairs, [len(context) for _, context in pairs])
            for answers in self._answers(chunk, windower, chosen)
        ]
        return found[0] if single else found

    def _answers(
        self, pairs: Sequence[Pair], windower: Windower, options: PipelineOptions
    ) -> Iterator[list[Result]]:
        """The answers to each pair, best first."""
        questions = {question: i for i, question in enumerate(dict.fromkeys(q for q, _ in pairs))}
        contexts = {context: i for i, context in enumerate(dict.fromkeys(c for _, c in pairs))}
        windows = windower.windows(
            list(questions),
            list(contexts),
            [(questions[q], contexts[c]) for q, c in pairs],
            words=options.align_to_words,
        )
        spans, window_null = self._window_spans(windows, options)
        null = np.full(len(pairs), np.inf)
        np.minimum.at(null, windows.pair, window_null)
        # Windows lie pair by pair, in the order of the context.
        borders = np.searchsorted(windows.pair, np.arange(len(pairs) + 1))
        for number, (_, context) in enumerate(pairs):
            parts = spans[borders[number] : borders[number + 1]]
            empty = float(null[number]) if options.handle_impossible_answer else None
            yield pooled(context, itertools.chain.from_iterable(parts), empty, options.top_k)

    def _window_spans(
        self, windows: Windows, options: PipelineOptions
    ) -> tuple[list[list[tuple[int, int, float]]], NDArray[np.float64]]:
        """Start, end and probability of the best spans of each window, and its chance of no answer."""
        null = np.empty(len(windows))
        spans: list[list[tuple[int, int, float]]] = [[] for _ in range(len(windows))]
        # Spans that are widened to the same words leave room for others.
        k = 2 * options.top_k + 10 if options.align_to_words else options.top_k
        for batch, start, end in self.engine.run(windows, self._batches(windows, options.batch_size)):
            shares, shown = context_masks(windows, batch, start.shape[1], self.tokenizer.cls_token_id)
            begin = windows.context_start[batch]
            found = top_spans(start, end, shares, shown, begin, max_answer_tokens=options.max_answer_len, k=k)
            null[batch] = found.null
            for row, window in enumerate(batch):
                real = np.isfinite(found.log_probability[row])
                first, last = found.first[row, real], found.last[row, real]
                starts, ends = character_spans(
                    windows, window, first, last, align_to_words=options.align_to_words
                )
                scores = np.exp(found.log_probability[row, real])
                spans[window] = list(zip(starts.tolist(), ends.tolist(), scores.tolist(), strict=True))
        return spans, null

    def _batches(self, windows: Windows, batch_size: int | None) -> Iterator[NDArray[np.int64]]:
        rows = batch_size or len(windows)
        for batch in token_budget_batches(windows.lengths, self.engine.max_batch_tokens):
            for first in range(0, len(batch), rows):
                yield batch[first : first + rows]

    def _window(self, options: PipelineOptions) -> WindowConfig:
        reach = models.max_window_tokens(self._config)
        size = options.max_seq_len or min(384, self.tokenizer.model_max_length, reach)
        models.check_window("the model", self._config, size)
        stride = min(128, size // 2) if options.doc_stride is None else options.doc_stride
        # Questions are not cut: their length limit only has to pass.
        return WindowConfig(max_seq_len=size, doc_stride=stride, max_query_len=1)


def _device_name(device: str | int | torch.device | None) -> str:
    if isinstance(device, int):
        return f"cuda:{device}" if device >= 0 else "cpu"
    return "auto" if device is None else str(device)
