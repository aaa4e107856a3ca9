"""What a call of the question-answering pipeline takes: its options, and its inputs in all their forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral
from typing import Any

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Pair

_FORM = '{"question": …, "context": …}'
_LOWEST = {
    "top_k": 1,
    "doc_stride": 0,
    "max_answer_len": 1,
    "max_seq_len": 1,
    "max_question_len": 1,
    "batch_size": 1,
}
"""Smallest value of each numeric option."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PipelineOptions:
    """Options of a call, with the names and defaults of transformers."""

    top_k: int = 1
    """Answers to each question."""
    doc_stride: int | None = None
    """Tokens that neighbouring windows share; None means the smaller of 128 and half of ``max_seq_len``."""
    max_answer_len: int = 15
    """Longest answer, in tokens, before it is widened to whole words."""
    max_seq_len: int | None = None
    """Tokens of a window; None means 384, or what the model reaches if that is less."""
    max_question_len: int = 64
    """Without effect, as in transformers with a fast tokenizer: questions are never cut."""
    handle_impossible_answer: bool = False
    """Whether the empty answer may be given."""
    align_to_words: bool = True
    """Whether answers are widened to whole words."""
    batch_size: int | None = None
    """Most windows of one forward. A token budget sizes the batches; this can only make them smaller."""

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Integral) and int(value) >= low):
                raise InputError(f"{name} parameter should be an integer >= {low} (got {value!r})")

    def changed(self, changes: dict[str, Any]) -> PipelineOptions:
        """These options with some changed; None leaves an option as it is.

        Raises:
            InputError: an unknown name, or a value out of range.
        """
        allowed = [field.name for field in fields(self)]
        for name in changes:
            if name not in allowed:
                raise InputError(f"unknown keyword {name!r}; allowed are {', '.join(allowed)}")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


def paired(inputs: tuple[Any, ...], question: Any, context: Any, data: Any) -> tuple[list[Pair], bool]:
    """The pairs of a call's inputs, in any of their forms, and whether the call returns a single result.

    Args:
        inputs: the positional inputs; when there are any, the other arguments are ignored.
        question: a text or several.
        context: a text or several.
        data: an input, or several.

    Raises:
        InputError: another form, an empty text, or lists of unequal lengths.
    """
    if inputs:
        data = inputs[0] if len(inputs) == 1 else list(inputs)
        if len(inputs) == 2 and all(isinstance(text, str) for text in inputs):
            data = {"question": inputs[0], "context": inputs[1]}
    elif data is None:
        data = {"question": question, "context": context}
    if isinstance(data, Mapping):
        pairs = _pairs_of(data)
        return pairs, len(pairs) == 1
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise InputError(f"the input is a {type(data).__name__}; give {_FORM}, or a list of such")
    items = list(data)
    for item in items:
        if not isinstance(item, Mapping):
            raise InputError(f"an input of the list is a {type(item).__name__}; give {_FORM}")
    pairs = [pair for item in items for pair in _pairs_of(item)]
    return pairs, isinstance(data, (list, tuple)) and len(pairs) == 1


def _pairs_of(item: Mapping[str, Any]) -> list[Pair]:
    """The pairs of one dict, whose question, context or both may be lists."""
    texts = []
    for name in ("question", "context"):
        value = item.get(name)
        if value is None:
            raise InputError(f"`{name}` cannot be None or missing; give {_FORM}")
        values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
        for text in values:
            if not isinstance(text, str):
                raise InputError(f"`{name}` is a {type(text).__name__}; give a text or a list of texts")
        if "" in values:
            raise InputError(f"`{name}` cannot be empty")
        texts.append(values)
    questions, contexts = texts
    if isinstance(item["context"], str):
        contexts = contexts * len(questions)
    if len(questions) != len(contexts):
        raise InputError(
            f"{len(questions)} question(s), but {len(contexts)} context(s); give one context, or one for each"
        )
    return list(zip(questions, contexts, strict=True))
