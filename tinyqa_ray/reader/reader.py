"""A reader: questions and contexts in, answers out, in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyqa_ray import models
from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.forward import TorchForward
from tinyqa_ray.reader.spans import Reading, readings, sigmoid
from tinyqa_ray.windows import Windower

_PAIRS = 512
"""Pairs windowed and read at once: bounds memory, long enough to sort windows by length."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or ``answer=None`` when the context holds none.

    ``context[start:end] == answer`` in Python characters. ``score`` is ``sigmoid(span - null)``, the
    answer's chance against no answer, comparable across contexts; of a None answer it is ``na_prob``.
    """

    answer: str | None
    score: float
    start: int
    end: int
    na_prob: float
    document_id: str | None = None


class Reader:
    """A question-answering model with its tokenizer, windows and no-answer threshold."""

    def __init__(
        self,
        forward: TorchForward,
        windower: Windower,
        settings: models.ModelSettings,
        *,
        max_batch_tokens: int = 4096,
    ) -> None:
        self.forward = forward
        self.windower = windower
        self.settings = settings
        self.max_batch_tokens = max_batch_tokens

    @classmethod
    def from_pretrained(
        cls, model: str, *, window: WindowConfig | None = None, device: str = "auto"
    ) -> Reader:
        """Load a reader.

        Args:
            model: folder, URL of a folder, or hub id.
            window: sizes of the windows; the defaults, or what the model reaches, when not given.
            device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda``.

        Raises:
            InputError: no such model, no question-answering head, no fast tokenizer, or windows longer
                than the model reaches.
        """
        network = models.load_qa_model(model)
        if window is None:
            window = _fitting_window(models.max_window_tokens(network.config))
        models.check_window(model, network.config, window.max_seq_len)
        windower = Windower(models.load_tokenizer(model), window)
        forward = TorchForward(network, device=device, pad_id=windower.pad_id)
        return cls(forward, windower, models.read_settings(model))

    def read(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        pairs: Sequence[tuple[int, int]] | None = None,
        *,
        max_answer_tokens: int = 30,
        top_k: int = 1,
    ) -> list[Reading]:
        """The model's best spans and null score of every pair, before any threshold.

        Args:
            questions: Q texts.
            contexts: C texts; each is tokenised once within a call's chunk of pairs.
            pairs: (question index, context index); question i with context i when not given.
            max_answer_tokens: longest answer, in tokens.
            top_k: spans of each pair, not overlapping.
        """
        pairs = pairs if pairs is not None else [(i, i) for i in range(len(questions))]
        found: list[Reading] = []
        for start in range(0, len(pairs), _PAIRS):
            chunk = pairs[start : start + _PAIRS]
            q, c = sorted({pair[0] for pair in chunk}), sorted({pair[1] for pair in chunk})
            where_q, where_c = {i: n for n, i in enumerate(q)}, {i: n for n, i in enumerate(c)}
            windows = self.windower.windows(
                [questions[i] for i in q],
                [contexts[i] for i in c],
                [(where_q[i], where_c[j]) for i, j in chunk],
            )
            starts, ends = self.forward.logits(windows, self.max_batch_tokens)
            found += readings(windows, starts, ends, max_answer_tokens=max_answer_tokens, top_k=top_k)
        return found

    def answer_many(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 30,
        threshold: float | None = None,
    ) -> list[list[Answer]]:
        """Answer (question, context) pairs.

        Args:
            pairs: what to ask, of what.
            top_k: answers of each pair; fewer where the context holds fewer apart.
            max_answer_tokens: longest answer, in tokens.
            threshold: a pair whose ``na_prob`` is above it gets a None answer first; the model's own
                when not given, 1 never abstains.

        Returns:
            one list a pair, best first, never empty.

        Raises:
            InputError: a question is empty.
        """
        threshold = self.settings.no_answer_threshold if threshold is None else threshold
        questions = {question: i for i, question in enumerate(dict.fromkeys(q for q, _ in pairs))}
        contexts = {context: i for i, context in enumerate(dict.fromkeys(c for _, c in pairs))}
        if any(not question.strip() for question in questions):
            raise InputError("a question is empty; ask something")
        found = self.read(
            list(questions),
            list(contexts),
            [(questions[q], contexts[c]) for q, c in pairs],
            max_answer_tokens=max_answer_tokens,
            top_k=top_k,
        )
        return [
            answers(reading, context, threshold, top_k)
            for reading, (_, context) in zip(found, pairs, strict=True)
        ]

    def answer(self, question: str, context: str, **options: float | int | None) -> list[Answer]:
        """Answer one question of one context; see ``answer_many``."""
        return self.answer_many([(question, context)], **options)[0]  # type: ignore[arg-type]


def answers(reading: Reading, context: str, threshold: float, top_k: int) -> list[Answer]:
    """A reading as at most ``top_k`` answers, with a None answer first when it abstains."""
    na_prob = reading.na_prob
    made = [
        Answer(
            context[span.start : span.end],
            sigmoid(span.score - reading.null_score),
            span.start,
            span.end,
            na_prob,
        )
        for span in reading.spans
    ]
    if na_prob > threshold or not made:
        made.insert(0, Answer(None, na_prob, 0, 0, na_prob))
    return made[:top_k]


def _fitting_window(reach: int) -> WindowConfig:
    """The default window, shrunk to a model that reaches fewer tokens."""
    default = WindowConfig()
    if reach >= default.max_seq_len:
        return default
    return WindowConfig(max_seq_len=reach, doc_stride=reach // 3, max_query_len=reach // 4)
