"""Windows and answers of transformers' question-answering pipeline; any engine may run the model between."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.datasets.windows import Pair, Windower, Windows
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.reader.transformers_pipeline.inputs import PipelineOptions
from tinyqa_ray.reader.transformers_pipeline.spans import character_spans, pooled, sharing_tokens, top_spans

Result = dict[str, Any]
Run = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""A batch of window numbers, and their start and end logits, see ``Engine.run``."""


class PipelineReading:
    """What the pipeline does before and after the model."""

    def __init__(self, config: Any, tokenizer: Any, options: PipelineOptions) -> None:
        """Keep the tokenizer and the size of the windows.

        Args:
            config: the model's configuration.
            tokenizer: its fast tokenizer.
            options: the pipeline's options; each call may bring others.

        Raises:
            InputError: the windows are longer than the model reaches.
        """
        self.tokenizer = tokenizer
        self._config = config
        self._windower = Windower(tokenizer, self._window(options), cut_questions=False, keep_spaces=True)

    def windows(self, pairs: Sequence[Pair], options: PipelineOptions) -> Windows:
        """The windows of some pairs.

        Raises:
            InputError: a question leaves its context no room, or the windows are longer than the model
                reaches.
        """
        windower = self._windower.resized(self._window(options))
        return windower.windows(pairs, words=options.align_to_words)

    def answers(
        self, pairs: Sequence[Pair], windows: Windows, runs: Iterable[Run], options: PipelineOptions
    ) -> Iterator[list[Result]]:
        """The answers to each pair, best first, from the logits of its windows."""
        spans, window_null = self._window_spans(windows, runs, options)
        null = np.full(len(pairs), np.inf)
        np.minimum.at(null, windows.pair, window_null)
        # Windows lie pair by pair, in the order of the context.
        borders = np.searchsorted(windows.pair, np.arange(len(pairs) + 1))
        for number, (_, context) in enumerate(pairs):
            parts = spans[borders[number] : borders[number + 1]]
            empty = float(null[number]) if options.handle_impossible_answer else None
            yield pooled(context, itertools.chain.from_iterable(parts), empty, options.top_k)

    def _window_spans(
        self, windows: Windows, runs: Iterable[Run], options: PipelineOptions
    ) -> tuple[list[list[tuple[int, int, float]]], NDArray[np.float64]]:
        """Each window's best spans as (start, end, probability), and its chance of no answer."""
        null = np.empty(len(windows))
        spans: list[list[tuple[int, int, float]]] = [[] for _ in range(len(windows))]
        # Several spans may widen to the same words: more candidates make up for them.
        k = 2 * options.top_k + 10 if options.align_to_words else options.top_k
        for batch, start, end in runs:
            shares = sharing_tokens(windows, batch, start.shape[1], self.tokenizer.cls_token_id)
            begin = windows.context_start[batch]
            found = top_spans(start, end, shares, begin, max_answer_tokens=options.max_answer_len, k=k)
            null[batch] = found.null
            for row, window in enumerate(batch):
                real = np.isfinite(found.log_probability[row])
                first, last = found.first[row, real], found.last[row, real]
                starts, ends = character_spans(
                    windows, window, first, last, align_to_words=options.align_to_words
                )
                scores = np.exp(found.log_probability[row, real])
                # A byte-level token of a space alone has no text, unless it is widened to its word.
                text = starts < ends
                spans[window] = list(
                    zip(starts[text].tolist(), ends[text].tolist(), scores[text].tolist(), strict=True)
                )
                if options.handle_impossible_answer and shares[row, 0] and 0 < real.sum() < k:
                    # Short of spans, transformers' pipeline adds the opening token, with probability 0.
                    spans[window].append((0, 0, 0.0))
        return spans, null

    def _window(self, options: PipelineOptions) -> WindowConfig:
        reach = families.max_window_tokens(self._config)
        size = options.max_seq_len or min(384, self.tokenizer.model_max_length, reach)
        pretrained.check_window("the model", self._config, size)
        stride = min(128, size // 2) if options.doc_stride is None else options.doc_stride
        # Questions are not cut, so any valid limit of their length will do.
        return WindowConfig(max_seq_len=size, doc_stride=stride, max_query_len=1)
