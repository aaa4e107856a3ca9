"""Requests → windows, logits → answers. The function that runs windows is handed in: no Ray or HTTP here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.names import display_name
from tinyqa_ray.core.version import __version__
from tinyqa_ray.datasets.windows import Tokens, Windower, Windows
from tinyqa_ray.engines.load import fitting_window
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.models.settings import read_settings
from tinyqa_ray.reader.answers import Answer, TopK, at_least, least_margin, refusal, spans_read
from tinyqa_ray.reader.evidence import Evidence, Place, gathered_from
from tinyqa_ray.reader.ranks import best_of
from tinyqa_ray.reader.reader import too_long_questions
from tinyqa_ray.reader.spans import readings
from tinyqa_ray.reader.transformers_pipeline.inputs import PipelineOptions
from tinyqa_ray.reader.transformers_pipeline.reading import PipelineReading, Run
from tinyqa_ray.serve import schemas
from tinyqa_ray.serve.errors import RequestError

Logits = list[NDArray[np.float32]]
"""Start and end logits of each window, ``(2, tokens)``."""
RunWindows = Callable[[Tokens], Awaitable[Logits]]

_TOKENISERS = 2
"""Threads that cut windows and read answers; more would take cores from the forwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What runs the model, for ``/info``."""

    name: str
    parameters: int


class Service:
    """Answers requests with a model that runs elsewhere."""

    def __init__(self, config: ServeConfig, run: RunWindows) -> None:
        """Load the tokenizer and the settings of ``config.model``.

        Args:
            config: what is served, and within which limits.
            run: computes the logits of windows; a ``RequestError`` that it raises goes to the caller.

        Raises:
            InputError: no such model, or no fast tokenizer.
        """
        self.config = config
        self.run = run
        self.name = display_name(config.model)
        model_config = pretrained.load_config(config.model)
        tokenizer = pretrained.load_tokenizer(config.model)
        self.window = fitting_window(families.max_window_tokens(model_config))
        self.settings = read_settings(config.model, config.settings)
        self.set_threshold(config.threshold)
        self._windower = Windower(tokenizer, self.window, cut_questions=False)
        self._pipeline = PipelineReading(model_config, tokenizer, PipelineOptions())
        self._threads = ThreadPoolExecutor(_TOKENISERS, "windows")

    def set_threshold(self, threshold: float | None) -> None:
        """Threshold of the no-answer probability for this request; None takes that of the settings."""
        if threshold is None:
            threshold = read_settings(self.config.model, self.config.settings).no_answer_threshold
        self.settings = replace(self.settings, no_answer_threshold=threshold)

    def info(self, engine: EngineInfo) -> schemas.Info:
        """What answers here."""
        return schemas.Info(
            model=self.name,
            engine=engine.name,
            parameters=engine.parameters,
            version=__version__,
            max_seq_len=self.window.max_seq_len,
            doc_stride=self.window.doc_stride,
            threshold=self.settings.no_answer_threshold,
            temperature=self.settings.temperature,
            score_shift=self.settings.score_shift,
            limits=asdict(self.config.limits),
        )

    async def answer(self, request: schemas.AnswerRequest) -> schemas.AnswerResponse:
        """Answer each question of a request from all its contexts.

        Raises:
            RequestError: it is over a limit, or cannot be asked.
        """
        began = time.perf_counter()
        self._check_counts(request)
        windows = await self.off_the_loop(self._windows, request)
        logits = await self._logits(windows)
        found = await self.off_the_loop(self._answers, request, windows, logits)
        usage = schemas.Usage(
            contexts=len(request.contexts),
            windows=len(windows),
            tokens=int(windows.lengths.sum()),
            seconds=round(time.perf_counter() - began, 6),
        )
        made: dict[str, Any] = {"model": self.name, "usage": usage}
        if request.question is not None:
            return schemas.AnswerResponse(answers=found[0], **made)
        results = [
            schemas.QuestionAnswers(question=question, answers=each)
            for question, each in zip(request.asked, found, strict=True)
        ]
        return schemas.AnswerResponse(results=results, **made)

    async def infer(self, request: schemas.InferenceRequest) -> Any:
        """Answer as transformers' pipeline would: one answer, or a list where several are asked for.

        Raises:
            RequestError: as ``answer``.
        """
        given = request.parameters.model_dump() if request.parameters else {}
        options = PipelineOptions().changed(given)
        pair = (request.inputs.question, request.inputs.context)
        for name, text in zip(("question", "context"), pair, strict=True):
            if not text:
                raise RequestError(f"inputs.{name} is empty; give a text")
        windows = await self.off_the_loop(self._pipeline.windows, [pair], options)
        logits = await self._logits(windows)

        def read() -> list[Any]:
            return next(self._pipeline.answers([pair], windows, _runs(logits), options))

        found = await self.off_the_loop(read)
        return found if options.top_k > 1 else found[0]

    async def _logits(self, windows: Tokens) -> Logits:
        limits, tokens = self.config.limits, int(windows.lengths.sum())
        if tokens > limits.max_request_tokens:
            raise RequestError(
                f"the request has {tokens} tokens in {len(windows)} windows, over the limit of "
                f"{limits.max_request_tokens}; send fewer or shorter contexts, or fewer questions"
            )
        return await self.run(windows)

    def _check_counts(self, request: schemas.AnswerRequest) -> None:
        for name, values in (("questions", request.asked), ("contexts", request.contexts)):
            limit = getattr(self.config.limits, f"max_{name}")
            if len(values) > limit:
                raise RequestError(f"{len(values)} {name}, over the limit of {limit}; send them apart")
        for question in request.asked:
            if (reason := refusal(question, "")) is not None:
                raise RequestError(reason)

    def _windows(self, request: schemas.AnswerRequest) -> Windows:
        """Windows of every question with every context, question by question."""
        questions = self._windower.questions(request.asked)
        for reason in too_long_questions(self._windower, questions).values():
            raise RequestError(reason)
        texts = _texts(request)
        pairs = [(question, text) for question in request.asked for text in texts]
        return self._windower.windows(pairs, questions)

    def _answers(
        self, request: schemas.AnswerRequest, windows: Windows, logits: Logits
    ) -> list[list[schemas.FoundAnswer]]:
        """The answers to each question, ranked over the contexts."""
        threshold = self.settings.no_answer_threshold if request.no_answer else 1.0
        settings = replace(self.settings, no_answer_threshold=threshold)
        wanted: TopK = "all" if request.evidence else request.top_k
        texts = _texts(request)
        found = readings(
            windows,
            [each[0] for each in logits],
            [each[1] for each in logits],
            max_answer_tokens=request.max_answer_len,
            top_k=spans_read(wanted),
            contexts=texts * len(request.asked),
            least_margin=least_margin(wanted, settings.no_answer_threshold),
        )
        # By position, not by id: a caller may give two passages the same id.
        names = [str(place) for place in range(len(texts))]
        made = []
        for number in range(len(request.asked)):
            own = found[number * len(texts) : (number + 1) * len(texts)]
            if request.evidence:
                top_k = None if request.top_k == "all" else request.top_k
                grouped = gathered_from(own, texts, names, settings, top_k=top_k, min_score=request.min_score)
                made.append([_shown_evidence(each, request.contexts) for each in grouped])
            else:
                best = best_of(own, texts, names, settings, request.top_k)
                best = at_least(best, request.min_score)
                made.append([_shown(each, request.contexts) for each in best])
        return made

    async def off_the_loop(
        self, work: Callable[..., Any], *arguments: Any, threads: ThreadPoolExecutor | None = None
    ) -> Any:
        """Run ``work`` in a thread of these, or of ours; an ``InputError`` becomes a ``RequestError``."""
        try:
            pool = threads or self._threads
            return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
        except InputError as error:
            raise RequestError(str(error)) from None


def _texts(request: schemas.AnswerRequest) -> list[str]:
    return [each if isinstance(each, str) else each.text for each in request.contexts]


def _shown(answer: Answer, contexts: Sequence[str | schemas.Context]) -> schemas.FoundAnswer:
    """An answer whose ``document_id`` is the position of its context, if it has one."""
    name, meta = _named(answer.document_id, contexts)
    return schemas.FoundAnswer(
        answer=answer.answer,
        score=answer.score,
        start=answer.start,
        end=answer.end,
        na_prob=answer.na_prob,
        document_id=name,
        meta=meta,
    )


def _shown_evidence(found: Evidence, contexts: Sequence[str | schemas.Context]) -> schemas.FoundAnswer:
    best = found.places[0] if found.places else None
    start, end = (best.start, best.end) if best else (0, 0)
    shown = _shown(Answer(found.answer, found.score, start, end, found.na_prob, found.document_id), contexts)
    shown.places = [_shown_place(each, contexts) for each in found.places]
    return shown


def _shown_place(place: Place, contexts: Sequence[str | schemas.Context]) -> schemas.Place:
    name, meta = _named(place.document_id, contexts)
    shown = schemas.Place(
        document_id=name,
        answer=place.answer,
        score=place.score,
        start=place.start,
        end=place.end,
        sentence=place.sentence,
        sentence_start=place.sentence_start,
    )
    if meta is not None:
        shown.meta = meta
    return shown


def _named(
    place: str | None, contexts: Sequence[str | schemas.Context]
) -> tuple[str | None, dict[str, Any] | None]:
    """The id and meta of a context, given by its position."""
    if place is not None and isinstance(context := contexts[int(place)], schemas.Context):
        return place if context.id is None else context.id, context.meta
    return place, None


def _runs(logits: Sequence[NDArray[np.float32]]) -> Iterator[Run]:
    """Each window as a batch of its own."""
    for number, (start, end) in enumerate(logits):
        yield np.array([number]), start[None], end[None]
