"""A reader: questions and contexts in, answers out, in the same order."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Pair, Questions, Windower
from tinyqa_ray.engines import choose
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.load import check_model, fitting_window, load_engine
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.models.settings import ModelSettings, keep_of, read_settings
from tinyqa_ray.reader import answers as some
from tinyqa_ray.reader.answers import Answer, TopK, refusal
from tinyqa_ray.reader.cascade import FirstReader, Float, kept, margins
from tinyqa_ray.reader.evidence import Evidence, gathered_from
from tinyqa_ray.reader.ranks import best_of, rescored
from tinyqa_ray.reader.similarity import SentenceSimilarity, check_sentence_encoder, is_sentence_encoder
from tinyqa_ray.reader.spans import Reading, readings

_PAIRS = 512
_CHARACTERS = 4_000_000
"""Most pairs, and characters of their contexts, windowed at once: limits memory, allows sorting by length."""


class Reader:
    """A question-answering model with its engine, windows, no-answer threshold and temperature."""

    def __init__(self, engine: Engine, windower: Windower, settings: ModelSettings) -> None:
        self.engine = engine
        self.windower = windower
        self.settings = settings
        self.first: FirstReader | None = None
        """What looks at the texts of a question before; see ``from_pretrained``."""
        self.first_keep = 0.0

    @classmethod
    def from_pretrained(
        cls,
        model: str = bundled.MODEL,
        *,
        settings: str | ModelSettings | None = None,
        device: str = "auto",
        precision: str | None = None,
        window: WindowConfig | None = None,
        cut_questions: bool = False,
        compiled: bool = False,
        first_pass: str | None = None,
        first_pass_keep: float | None = None,
    ) -> Reader:
        """Load a reader.

        Args:
            model: folder, URL of a folder, or hub id; a folder that ``tinyqa export`` wrote; or
                ``tinyqa-mini`` or ``tinyqa-mini-int8``, the package's own model and its int8 form.
            settings: threshold and scale of scores: the output of ``tinyqa evaluate``, a settings file, or a
                ``ModelSettings``; when not given, those beside the model, if any.
            device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda`` or one GPU of several such as
                ``cuda:1``; for an ONNX export also ``tensorrt``.
            precision: ``fp32``, ``bf16``, ``fp16`` or ``int8`` (exported models only). When not given, the
                export's own, or for a torch model bf16 on a GPU from Ampere on, fp16 on an older one, fp32
                on a CPU. ``auto`` is the same, but on a CPU takes the fastest engine at hand, see
                ``engines.choose``; its name, such as ``onnx-int8``, fixes it.
            window: sizes of the windows; when not given, the defaults or what the model reaches.
            cut_questions: cut questions to the window's ``max_query_len``, as the official evaluation
                does; otherwise they stay whole.
            compiled: run a torch model through ``torch.compile``; on a GPU, for few shapes of batches.
            first_pass: a smaller model that reads all contexts of ``answer`` first, or an encoder of
                sentences; this one reads those that are near the best, and the others count as contexts
                without an answer.
            first_pass_keep: how near: most log odds (or similarity) below the best context; when not given,
                as fitted.

        Raises:
            InputError: no such model, no question-answering head, no fast tokenizer, a precision that the
                device or the export lacks, or windows longer than the model reaches.
        """
        if compiled or precision is None:
            precision = precision or "auto"
            engine, config = load_engine(model, device=device, precision=precision, compiled=compiled)
        else:
            engine, config = choose.load(model, device=device, precision=precision)
        if window is None:
            window = fitting_window(families.max_window_tokens(config))
        pretrained.check_window(model, config, window.max_seq_len)
        windower = Windower(pretrained.load_tokenizer(model), window, cut_questions=cut_questions)
        if not isinstance(settings, ModelSettings):
            settings = read_settings(model, settings)
        made = cls(engine, windower, settings)
        if first_pass is not None:
            made.first_keep = keep_of(first_pass, first_pass_keep, settings)
            made.first = first_reader(
                first_pass, device=device, window=window, cut_questions=cut_questions, compiled=compiled
            )
        return made

    def windowed(self, window: WindowConfig) -> Reader:
        """A reader with the same model and other windows."""
        other = copy.copy(self)
        other.windower = self.windower.resized(window)
        return other

    def read(
        self,
        pairs: Sequence[Pair],
        *,
        max_answer_tokens: int = 30,
        top_k: int = 1,
        least_margin: float = -math.inf,
    ) -> list[Reading]:
        """The model's best spans and null score of every pair, before any threshold.

        Args:
            pairs: questions, each with its context. A question is tokenised once, a context once per
                chunk of pairs.
            max_answer_tokens: longest answer, in tokens.
            top_k: spans of each pair; fragments beside a better one are left out.
            least_margin: least ``span - null`` of all spans of a pair but the best.
        """
        questions = self.windower.questions(question for question, _ in pairs)
        return self._read(pairs, questions, max_answer_tokens, top_k, least_margin)

    def read_or_refuse(
        self,
        pairs: Sequence[tuple[Any, Any]],
        questions: Questions | None = None,
        *,
        max_answer_tokens: int = 30,
        top_k: int = 1,
        least_margin: float = -math.inf,
    ) -> list[Reading | str]:
        """Like ``read``, but a pair that cannot be asked gets the reason in place of a reading.

        Args:
            pairs: questions, each with its context; either may be a value of any type.
            questions: the windower's tokens of the questions, where the caller has them already.
            max_answer_tokens: see ``read``.
            top_k: see ``read``.
            least_margin: see ``read``.
        """
        errors = [refusal(question, context) for question, context in pairs]
        if questions is None:
            texts = (text for (text, _), error in zip(pairs, errors, strict=True) if error is None)
            questions = self.windower.questions(texts)
        too_long = too_long_questions(self.windower, questions)
        errors = [
            error if error is not None else too_long.get(question)
            for (question, _), error in zip(pairs, errors, strict=True)
        ]
        good = [pair for pair, error in zip(pairs, errors, strict=True) if error is None]
        found = iter(self._read(good, questions, max_answer_tokens, top_k, least_margin))
        return [next(found) if error is None else error for error in errors]

    def _read(
        self,
        pairs: Sequence[Pair],
        questions: Questions,
        max_answer_tokens: int,
        top_k: int,
        least_margin: float = -math.inf,
    ) -> list[Reading]:
        found: list[Reading] = []
        for chunk in chunks(pairs):
            windows = self.windower.windows(chunk, questions)
            starts, ends = self.engine.logits(windows)
            found += readings(
                windows,
                starts,
                ends,
                max_answer_tokens=max_answer_tokens,
                top_k=top_k,
                contexts=[context for _, context in chunk],
                least_margin=least_margin,
            )
        return found

    def answer_many(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_k: TopK = 1,
        min_score: float = 0.0,
        max_answer_tokens: int = 30,
        threshold: float | None = None,
    ) -> list[list[Answer]]:
        """Answer (question, context) pairs.

        A pair that cannot be asked (for example None or an empty question) gets an answer with ``error``;
        the others are answered all the same.

        Args:
            pairs: questions, each with its context.
            top_k: answers of each pair; fewer where the context holds fewer that neither overlap nor are
                fragments of better ones. With ``all``, every span that the model holds for an answer, at most
                a hundred.
            min_score: answers with a lower score are left out.
            max_answer_tokens: longest answer, in tokens.
            threshold: a pair whose ``na_prob`` is above it gets a None answer first; when not given, the
                model's own. With 1 the reader never abstains.

        Returns:
            one list for each pair, best first, never empty.

        Raises:
            InputError: an option out of range.
        """
        settings = self._checked(top_k, max_answer_tokens, threshold, min_score)
        found = self.read_or_refuse(
            pairs,
            max_answer_tokens=max_answer_tokens,
            top_k=some.spans_read(top_k),
            least_margin=some.least_margin(top_k, settings.no_answer_threshold),
        )
        return [
            some.at_least(rescored(some.of_text(each, context, settings, top_k), settings), min_score)
            for each, (_, context) in zip(found, pairs, strict=True)
        ]

    def answer(
        self,
        question: str,
        contexts: str | Sequence[str],
        *,
        document_ids: Sequence[str] | None = None,
        top_k: TopK = 1,
        min_score: float = 0.0,
        max_answer_tokens: int = 30,
        threshold: float | None = None,
    ) -> list[Answer]:
        """Answer one question from a context, or from several.

        Args:
            question: what to ask.
            contexts: one text, or several whose answers are ranked together by score.
            document_ids: names of the contexts; when not given, the numbers ("0", "1", …) of several.
            top_k: answers over all contexts together; ``all`` as in ``answer_many``, of each context.
            min_score: answers with a lower score are left out.
            max_answer_tokens: longest answer, in tokens.
            threshold: when the ``na_prob`` of every context is above it, a None answer comes first; when
                not given, the model's own. With 1 the reader never abstains.

        Returns:
            at most ``top_k`` answers, best first; after them one with ``error`` for each context that
            could not be asked.

        Raises:
            InputError: the question cannot be asked, an option out of range, or ids that do not fit.
        """
        settings = self._checked(top_k, max_answer_tokens, threshold, min_score)
        found, texts, names = self._each(question, contexts, document_ids, max_answer_tokens, top_k, settings)
        return some.at_least(best_of(found, texts, names, settings, top_k), min_score)

    def evidence(
        self,
        question: str,
        contexts: str | Sequence[str],
        *,
        document_ids: Sequence[str] | None = None,
        top_k: TopK = "all",
        min_score: float = 0.0,
        max_answer_tokens: int = 30,
        threshold: float | None = None,
    ) -> list[Evidence]:
        """Answer one question with the evidence: every place that gives an answer, equal answers as one.

        Args:
            question: what to ask.
            contexts: one text or several, in which each span that the model holds for an answer is a place.
            document_ids: see ``answer``.
            top_k: most different answers.
            min_score: answers with a lower combined score are left out.
            max_answer_tokens: longest answer, in tokens.
            threshold: see ``answer``.

        Returns:
            different answers, best first, at least one; after them one with ``error`` for each context that
            could not be asked.

        Raises:
            InputError: see ``answer``.
        """
        settings = self._checked(top_k, max_answer_tokens, threshold, min_score)
        found, texts, names = self._each(question, contexts, document_ids, max_answer_tokens, "all", settings)
        most = None if top_k == "all" else top_k
        return gathered_from(found, texts, names, settings, top_k=most, min_score=min_score)

    def _each(
        self,
        question: str,
        contexts: str | Sequence[str],
        document_ids: Sequence[str] | None,
        max_answer_tokens: int,
        top_k: TopK,
        settings: ModelSettings,
    ) -> tuple[list[Reading | str], list[str], list[str | None]]:
        """What is read in each context of one question, or why it is not; the texts and names of those."""
        texts = [contexts] if isinstance(contexts, str) else list(contexts)
        if (error := refusal(question, "")) is not None:
            raise InputError(error)
        questions = self.windower.questions([question])
        for error in too_long_questions(self.windower, questions).values():
            raise InputError(error)
        ids: Sequence[str | None] = document_ids if document_ids is not None else _numbered(contexts, texts)
        if len(ids) != len(texts):
            raise InputError(f"{len(ids)} document_ids, but {len(texts)} contexts; give one for each")
        if not texts:
            raise InputError("there is no context; give at least one text")
        pairs = [(question, text) for text in texts]
        if self.first is not None and len(texts) > 1:
            near = self._near(self.first, pairs, max_answer_tokens)
            texts, pairs = [texts[i] for i in near], [pairs[i] for i in near]
            ids = [ids[i] for i in near]
        found = self.read_or_refuse(
            pairs,
            questions,
            max_answer_tokens=max_answer_tokens,
            top_k=some.spans_read(top_k),
            least_margin=some.least_margin(top_k, settings.no_answer_threshold),
        )
        return found, texts, list(ids)

    def margins(self, pairs: Sequence[tuple[Any, Any]], *, max_answer_tokens: int = 30) -> Float:
        """Log odds of each pair's best span against no answer, ``(n,)``; see ``cascade.margins``."""
        return margins(self.read_or_refuse(pairs, max_answer_tokens=max_answer_tokens))

    def _near(self, first: FirstReader, pairs: Sequence[Pair], max_answer_tokens: int) -> list[int]:
        """Numbers of the contexts of one question that are near the best by the first pass."""
        found = first.margins(pairs, max_answer_tokens=max_answer_tokens)
        known = found[~np.isnan(found)]
        best = np.full(len(found), known.max() if len(known) else -np.inf)
        return [int(i) for i in np.flatnonzero(kept(found, best, self.first_keep))]

    def _checked(
        self, top_k: TopK, max_answer_tokens: int, threshold: float | None, min_score: float = 0.0
    ) -> ModelSettings:
        """The settings of a call, once its options are checked."""
        if isinstance(top_k, str) and top_k != "all":
            raise InputError(f"top_k is {top_k!r}; it must be a number or 'all'")
        for name, value in (("top_k", top_k), ("max_answer_tokens", max_answer_tokens)):
            if not isinstance(value, str) and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if not 0.0 <= min_score <= 1.0:
            raise InputError(f"min_score is {min_score}; it must lie in [0, 1]")
        if threshold is None:
            return self.settings
        if not 0.0 <= threshold <= 1.0:
            raise InputError(f"threshold is {threshold}; it must lie in [0, 1]")
        return replace(self.settings, no_answer_threshold=threshold)


def first_reader(
    model: str,
    *,
    device: str = "auto",
    window: WindowConfig | None = None,
    cut_questions: bool = False,
    compiled: bool = False,
) -> FirstReader:
    """Load what makes a first pass.

    Args:
        model: a question-answering model or an export of one, or an encoder of sentences.
        device: see ``Reader.from_pretrained``, as for the others.
        window: sizes of windows.
        cut_questions: whether long questions are cut.
        compiled: whether a torch model runs through ``torch.compile``.

    Raises:
        InputError: no such model, or it can do neither.
    """
    if is_sentence_encoder(model):
        return SentenceSimilarity(model, device=device)
    return Reader.from_pretrained(
        model, device=device, window=window, cut_questions=cut_questions, compiled=compiled
    )


def check_first_reader(model: str, window: WindowConfig) -> None:
    """Refuse, without loading weights, what cannot make a first pass.

    Raises:
        InputError: see ``first_reader``.
    """
    if is_sentence_encoder(model):
        check_sentence_encoder(model)
    else:
        check_model(model, window)


def too_long_questions(windower: Windower, questions: Questions) -> dict[str, str]:
    """The questions that leave too little of a window for a context, each with its error message."""
    return {
        question: f"the question has {len(questions[question])} tokens, which leaves too little of a window "
        f"of {windower.config.max_seq_len} for the context; shorten it"
        for question in windower.too_long(questions)
    }


def chunks(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Neighbouring pairs, as many as are windowed at once; a pair with too long a context goes alone."""
    first, total = 0, 0
    for number, (_, context) in enumerate(pairs):
        count = len(context)
        total += count
        if number > first and (number - first == _PAIRS or total > _CHARACTERS):
            yield pairs[first:number]
            first, total = number, count
    if first < len(pairs):
        yield pairs[first:]


def _numbered(contexts: str | Sequence[str], texts: Sequence[str]) -> list[str | None]:
    return [None] if isinstance(contexts, str) else [str(number) for number in range(len(texts))]
