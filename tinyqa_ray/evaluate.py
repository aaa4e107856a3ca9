"""Measuring a model on SQuAD 2.0 questions: official metrics, the no-answer threshold, a page to read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tinyqa_ray import metrics, models, report, runs, squad, storage
from tinyqa_ray.cluster import cores, quiet_models
from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.spans import Reading

Progress = Callable[[int, int], None]
"""Called with questions read and questions in all."""

_CHUNK = 128
_EXAMPLES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateReport:
    """A model's figures, in percent; None where the data has no such question."""

    questions: int
    has_ans_total: int
    no_ans_total: int
    exact: float
    """EM at the threshold."""
    f1: float
    """F1 at the threshold."""
    has_ans_exact: float | None
    has_ans_f1: float | None
    no_ans_f1: float | None
    forced_exact: float | None
    """EM of answerable questions when the model must answer."""
    forced_f1: float | None
    """F1 of answerable questions when the model must answer."""
    always_abstain: float
    """F1 of never answering: what the figures must be compared with."""
    no_answer_threshold: float
    """The model abstains when ``na_prob`` is above it."""
    questions_per_s: float
    parameters: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question with the passage it is asked of."""

    question: squad.Question
    context: str


def evaluate(config: EvaluateConfig, output: str, progress: Progress | None = None) -> EvaluateReport:
    """Measure ``config.model`` on ``config.data``.

    Writes ``predictions.json`` (the best span of every question, before abstaining), ``na_probs.json``,
    ``metrics.json`` and ``report.html``. ``tinyqa score`` with both JSON files and the threshold gives the
    same EM and F1.

    Raises:
        InputError: model or data that cannot be read, or a threshold to be fitted on what is measured.
    """
    extra = {} if config.fit_threshold else {"settings": str(asdict(models.read_settings(config.model)))}
    with runs.stage(output, config, inputs=("model", "data", "fit_threshold"), extra=extra) as stage:
        if stage.finished:
            return stage.report(EvaluateReport)
        asked = _asked(config.data)
        reader = _reader(config)
        if config.fit_threshold is not None:
            _fit_threshold(reader, config, {each.question.id for each in asked})
        readings, seconds = _read(reader, asked, config, progress)
        threshold = reader.settings.no_answer_threshold
        predictions, na_probs = _answers(asked, readings)
        gold = _gold(asked)
        summary = metrics.summarize(gold, predictions, na_probs, threshold)
        figures = {
            name: value for name, value in asdict(summary).items() if name not in ("total", "threshold")
        }
        made = EvaluateReport(
            questions=summary.total,
            **figures,
            no_answer_threshold=threshold,
            questions_per_s=len(asked) / seconds,
            parameters=sum(parameter.numel() for parameter in reader.forward.model.parameters()),
        )
        storage.write_json(stage.path("predictions.json"), predictions)
        storage.write_json(stage.path("na_probs.json"), na_probs)
        official = metrics.score(gold, predictions, na_probs, threshold)
        storage.write_json(stage.path("metrics.json"), {**asdict(made), "official": official})
        page = report.evaluation_html(_page(config, made, asked, readings))
        storage.write_atomic(stage.path("report.html"), page.encode())
        return stage.publish(made)


def _reader(config: EvaluateConfig) -> Reader:
    import torch

    quiet_models()
    torch.set_num_threads(config.threads or cores(1))
    return Reader.from_pretrained(config.model, window=config.window)


def _asked(data: str) -> list[_Asked]:
    """Every question of the original paragraphs; copies are for training."""
    asked = [
        _Asked(question, paragraph.context)
        for paragraph in squad.read_squad(data)
        if paragraph.copy == 0
        for question in paragraph.questions
    ]
    if not asked:
        raise InputError(f"{data}: holds no questions")
    return asked


def _fit_threshold(reader: Reader, config: EvaluateConfig, measured: set[str]) -> None:
    """Fit the threshold on other questions, and store it beside the model."""
    assert config.fit_threshold is not None
    models.settings_file(config.model)  # a hub id is refused before anything is read
    asked = _asked(config.fit_threshold)
    shared = [each.question.id for each in asked if each.question.id in measured]
    if shared:
        raise InputError(
            f"{config.fit_threshold}: shares {len(shared)} questions with {config.data} ({shared[0]}, …); "
            "a threshold fitted on what is then measured flatters; give other data"
        )
    readings, _ = _read(reader, asked, config, None)
    predictions, na_probs = _answers(asked, readings)
    threshold = metrics.best_threshold(_gold(asked), predictions, na_probs)
    reader.settings = replace(
        reader.settings, no_answer_threshold=threshold, fitted_on=storage.identity(config.fit_threshold)
    )
    models.write_settings(config.model, reader.settings)


def _read(
    reader: Reader, asked: Sequence[_Asked], config: EvaluateConfig, progress: Progress | None
) -> tuple[list[Reading], float]:
    """Readings of all questions, and the seconds they took."""
    began = time.perf_counter()
    readings: list[Reading] = []
    for start in range(0, len(asked), _CHUNK):
        chunk = asked[start : start + _CHUNK]
        contexts = {context: i for i, context in enumerate(dict.fromkeys(each.context for each in chunk))}
        readings += reader.read(
            [each.question.question for each in chunk],
            list(contexts),
            [(i, contexts[each.context]) for i, each in enumerate(chunk)],
            max_answer_tokens=config.max_answer_tokens,
        )
        if progress:
            progress(len(readings), len(asked))
    return readings, time.perf_counter() - began


def _answers(asked: Sequence[_Asked], readings: Sequence[Reading]) -> tuple[dict[str, str], dict[str, float]]:
    """Best span and no-answer probability by question id."""
    predictions, na_probs = {}, {}
    for each, reading in zip(asked, readings, strict=True):
        best = reading.spans[0] if reading.spans else None
        predictions[each.question.id] = each.context[best.start : best.end] if best else ""
        na_probs[each.question.id] = reading.na_prob
    return predictions, na_probs


def _gold(asked: Sequence[_Asked]) -> dict[str, list[str]]:
    return {each.question.id: [answer.text for answer in each.question.answers] for each in asked}


def _page(
    config: EvaluateConfig, made: EvaluateReport, asked: Sequence[_Asked], readings: Sequence[Reading]
) -> report.EvaluationReport:
    """What the HTML page shows."""
    predictions, na_probs = _answers(asked, readings)
    scored = metrics.per_question(_gold(asked), predictions)
    shortest = [min((len(a.text.split()) for a in each.question.answers), default=0) for each in asked]
    return report.EvaluationReport(
        title=f"{_last(config.model)} on {_last(config.data)}",
        facts=(
            ("model", config.model),
            ("data", config.data),
            ("parameters", f"{made.parameters:,}"),
            ("questions", f"{made.questions} ({made.no_ans_total} unanswerable)"),
            ("window", f"{config.window.max_seq_len} tokens, overlap {config.window.doc_stride}"),
            ("threshold", f"{made.no_answer_threshold:.4f} (abstain above)"),
            ("speed", f"{made.questions_per_s:.1f} questions/s"),
            *runs.versions().items(),
        ),
        metrics=tuple((name, _percent(getattr(made, key)), why) for key, name, why in _METRICS),
        na_probs=np.array(list(na_probs.values()), dtype=np.float64),
        f1=np.asarray(scored.f1, dtype=np.float64),
        answerable=np.asarray(scored.has_answer, dtype=np.bool_),
        answer_tokens=np.array(shortest, dtype=np.int64),
        threshold=made.no_answer_threshold,
        examples=tuple(_examples(asked, readings, made.no_answer_threshold)),
    )


_METRICS = (
    ("f1", "F1", "all questions, at the model's threshold"),
    ("exact", "EM", "all questions, at the model's threshold"),
    ("has_ans_f1", "HasAns F1", "answerable questions, at the threshold"),
    ("no_ans_f1", "NoAns", "unanswerable questions that the model left unanswered"),
    ("forced_f1", "Forced F1", "answerable questions when the model must answer"),
    ("always_abstain", "Always abstain", "what answering nothing would score"),
)


def _examples(asked: Sequence[_Asked], readings: Sequence[Reading], threshold: float) -> list[report.Example]:
    """A spread of questions over the data, with what the model said at its threshold."""
    chosen = np.unique(np.linspace(0, len(asked) - 1, _EXAMPLES).astype(int))
    return [_example(asked[i], readings[i], threshold) for i in chosen]


def _example(each: _Asked, reading: Reading, threshold: float) -> report.Example:
    best = reading.spans[0] if reading.spans and reading.na_prob <= threshold else None
    predicted = each.context[best.start : best.end] if best else None
    golds = [answer.text for answer in each.question.answers] or [""]
    return report.Example(
        question=each.question.question,
        context=each.context,
        gold=golds[0] or None,
        predicted=predicted,
        start=best.start if best else 0,
        end=best.end if best else 0,
        na_prob=reading.na_prob,
        f1=max(metrics.f1(gold, predicted or "") for gold in golds),
    )


def _last(path: str) -> str:
    """The telling end of a path: ``student/model`` is the student."""
    parts = [part for part in path.rstrip("/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def _percent(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}"
