"""The work of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage, version
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.core.contents import identity
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.names import display_name
from tinyqa_ray.engines.ensemble import load_mean
from tinyqa_ray.evaluate import calibration, first_pass, measure, page, ranks, squad_metrics
from tinyqa_ray.evaluate.report import EvaluateReport
from tinyqa_ray.models import hub
from tinyqa_ray.models.settings import ModelSettings, first_reader_identity, write_settings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.reader import first_reader
from tinyqa_ray.reader.spans import Reading

_EXAMPLES = 12


def work(
    config: EvaluateConfig,
    settings: ModelSettings,
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> EvaluateReport:
    """Measure the model, write its answers and the page, and return its figures."""
    data = ("data", "fit_threshold", "fit_temperature", "fit_first_pass")
    config = hub.pinned(config, stage, "model", "ensemble_with", data=data)
    asked = measure.questions_of(config.data)
    reader = _reader(config)
    reader.settings = _fitted(reader, settings, config, {each.question.id for each in asked})
    if config.fit_first_pass is not None:
        reader.settings = _with_first_pass(reader, config, asked, stage, progress)
    if any((config.fit_threshold, config.fit_temperature, config.fit_first_pass)):
        write_settings(stage.output, reader.settings)
    readings, seconds = measure.read(reader, asked, config.max_answer_tokens, progress, top_k=ranks.RANKS)
    scored, threshold = measure.Scored.of(asked, readings), reader.settings.no_answer_threshold
    summary = scored.summary(threshold)
    figures = {name: value for name, value in asdict(summary).items() if name not in ("total", "threshold")}
    margins, right = scored.margins()
    scale = calibration.Scale(temperature=reader.settings.temperature, shift=reader.settings.score_shift)
    scores = scale.scores(margins)
    made = EvaluateReport(
        questions=summary.total,
        **figures,
        no_answer_threshold=threshold,
        temperature=scale.temperature,
        score_shift=scale.shift,
        calibration_error=100 * calibration.calibration_error(scores, right),
        questions_per_s=len(asked) / seconds,
        parameters=reader.engine.parameters,
        rank_errors=ranks.errors(ranks.judged(asked, readings, reader.settings), reader.settings),
    )
    storage.write_json(stage.path("predictions.json"), scored.predictions)
    storage.write_json(stage.path("na_probs.json"), scored.na_probs)
    official = squad_metrics.score(scored.per_question, scored.na_probs, threshold)
    storage.write_json(stage.path("metrics.json"), {**asdict(made), "official": official})
    html = page.evaluation_html(_page(config, made, scored, scores, right))
    storage.write_atomic(stage.path("report.html"), html.encode())
    return made


def measured(
    model: str, data: str, window: WindowConfig, *, device: str = "cpu", threads: int = 0
) -> dict[str, float | None]:
    """Figures of a model on the questions of ``data``, in percent, without writing anything.

    Returns:
        ``exact``, ``f1``, ``has_ans_f1``, ``no_ans_f1`` at the model's own threshold; ``forced_f1``;
        ``best_f1`` and ``best_exact`` at the thresholds that are best on these very questions; ``questions``
        and the model's ``parameters``.

    Raises:
        InputError: the model or data cannot be read.
    """
    config = EvaluateConfig(model=model, data=data, window=window, threads=threads)
    reader, asked = _reader(config, device), measure.questions_of(data)
    readings, _ = measure.read(reader, asked, config.max_answer_tokens)
    found = figures(asked, readings, reader.settings.no_answer_threshold)
    return {**found, "parameters": reader.engine.parameters}


def figures(
    asked: Sequence[measure.Asked], readings: Sequence[Reading], threshold: float
) -> dict[str, float | None]:
    """What ``measured`` returns of readings, but for ``parameters``."""
    scored = measure.Scored.of(asked, readings)
    summary = asdict(scored.summary(threshold))
    official = squad_metrics.score(scored.per_question, scored.na_probs)
    kept = ("exact", "f1", "has_ans_f1", "no_ans_f1", "forced_f1")
    return {
        **{name: summary[name] for name in kept},
        **{name: official[name] for name in ("best_exact", "best_f1")},
        "questions": len(asked),
    }


def _reader(config: EvaluateConfig, device: str = "auto") -> Reader:
    import torch

    quiet_models()
    torch.set_num_threads(config.threads or cores(1))
    reader = Reader.from_pretrained(config.model, device=device, window=config.window, cut_questions=True)
    if config.ensemble_with:
        reader.engine = load_mean((config.model, *config.ensemble_with), device=device)
    return reader


def _fitted(
    reader: Reader, settings: ModelSettings, config: EvaluateConfig, measured: set[str]
) -> ModelSettings:
    """The settings; values that ``config`` asks to fit are fitted on questions that are not measured."""
    fitted: dict[str, Any] = {}
    # Both are often fitted on the same data, which is then read once.
    others = {
        data: _read_others(reader, config, data, measured)
        for data in dict.fromkeys((config.fit_threshold, config.fit_temperature))
        if data is not None
    }
    if config.fit_threshold is not None:
        scored = others[config.fit_threshold]
        threshold = squad_metrics.best_threshold(scored.per_question, scored.na_probs)
        fitted.update(no_answer_threshold=threshold, fitted_on=identity(config.fit_threshold))
    if config.fit_temperature is not None:
        scale = calibration.best_scale(*others[config.fit_temperature].margins())
        fitted.update(temperature=scale.temperature, score_shift=scale.shift)
        fitted.update(temperature_fitted_on=identity(config.fit_temperature))
    settings = replace(settings, **fitted)
    if config.fit_temperature is not None:
        scored = others[config.fit_temperature]
        found = ranks.judged(scored.asked, scored.readings, settings)
        settings = replace(ranks.fitted(found, settings), ranks_fitted_on=identity(config.fit_temperature))
    return settings


def _with_first_pass(
    reader: Reader,
    config: EvaluateConfig,
    measured: Sequence[measure.Asked],
    stage: stage_folder.Stage,
    progress: stage_folder.Progress | None,
) -> ModelSettings:
    """The reader's settings with what the first pass may leave out; writes the curve it was chosen on."""
    assert config.first_pass is not None
    assert config.fit_first_pass is not None
    questions, candidates = config.first_pass_questions, config.first_pass_candidates
    assert questions is not None
    assert candidates is not None
    assert config.first_pass_loss is not None
    first = first_reader(config.first_pass, window=config.window, cut_questions=True)
    others = _other_questions(config, config.fit_first_pass, {each.question.id for each in measured})
    if not any(each.question.answers for each in others):
        raise InputError(f"{config.fit_first_pass}: has no question with an answer to fit a first pass on")
    tried = first_pass.tried(
        first,
        reader,
        others,
        questions=questions,
        candidates=candidates,
        max_answer_tokens=config.max_answer_tokens,
        progress=progress,
    )
    curve = first_pass.curve(tried)
    place = curve.within(config.first_pass_loss)
    chosen = {name: float(getattr(curve, name)[place]) for name in ("keep", "share", "f1")}
    # A hundred places of the curve show its form.
    shown = np.unique(np.linspace(0, len(curve.keep) - 1, 100).astype(int))
    written = {name: getattr(curve, name)[shown].tolist() for name in ("keep", "share", "f1")}
    storage.write_json(
        stage.path("first-pass.json"), {**chosen, "f1_of_all_pairs": float(curve.f1[-1]), "curve": written}
    )
    return replace(
        reader.settings,
        first_pass_keep=chosen["keep"],
        first_pass_fitted_for=first_reader_identity(config.first_pass),
        first_pass_fitted_on=identity(config.fit_first_pass),
    )


def _read_others(reader: Reader, config: EvaluateConfig, data: str, measured: set[str]) -> measure.Scored:
    """Questions to fit on, read and scored; for errors see ``_other_questions``."""
    asked = _other_questions(config, data, measured)
    return measure.Scored.of(
        asked, measure.read(reader, asked, config.max_answer_tokens, top_k=ranks.RANKS)[0]
    )


def _other_questions(config: EvaluateConfig, data: str, measured: set[str]) -> list[measure.Asked]:
    """Questions to fit on.

    Raises:
        InputError: some of these questions are measured, too.
    """
    asked = measure.questions_of(data)
    shared = [each.question.id for each in asked if each.question.id in measured]
    if shared:
        raise InputError(
            f"{data}: shares {len(shared)} questions with {config.data} ({shared[0]}, …); "
            "a fit on the questions that are then measured makes the figures too good; give other data"
        )
    return asked


def _page(
    config: EvaluateConfig,
    made: EvaluateReport,
    scored: measure.Scored,
    scores: NDArray[np.float64],
    right: NDArray[np.float64],
) -> page.EvaluationReport:
    """The contents of the HTML page."""
    shortest = [min((len(a.text.split()) for a in each.question.answers), default=0) for each in scored.asked]
    return page.EvaluationReport(
        title=f"{display_name(config.model)} on {display_name(config.data)}",
        facts=(
            ("model", config.model),
            ("data", config.data),
            ("parameters", f"{made.parameters:,}"),
            ("questions", f"{made.questions} ({made.no_ans_total} unanswerable)"),
            ("window", f"{config.window.max_seq_len} tokens, overlap {config.window.doc_stride}"),
            ("threshold", f"{made.no_answer_threshold:.4f} (abstain above)"),
            ("temperature", f"{made.temperature:.3f}, shift {made.score_shift:.3f}"),
            ("calibration", f"{made.calibration_error:.1f} % mean error of scores"),
            (
                "by rank",
                ", ".join(f"{error:.1f}" for error in made.rank_errors) + " %, of first, second, … answers",
            ),
            ("speed", f"{made.questions_per_s:.1f} questions/s"),
            *version.versions().items(),
        ),
        metrics=tuple((name, _percent(getattr(made, key)), why) for key, name, why in _METRICS),
        na_probs=np.array(list(scored.na_probs.values()), dtype=np.float64),
        f1=np.asarray(scored.per_question.f1, dtype=np.float64),
        answerable=np.asarray(scored.per_question.has_answer, dtype=np.bool_),
        answer_tokens=np.array(shortest, dtype=np.int64),
        threshold=made.no_answer_threshold,
        scores=scores,
        right=right,
        examples=tuple(_examples(scored.asked, scored.readings, made.no_answer_threshold)),
    )


_METRICS = (
    ("f1", "F1", "all questions, at the model's threshold"),
    ("exact", "EM", "all questions, at the model's threshold"),
    ("has_ans_f1", "HasAns F1", "answerable questions, at the threshold"),
    ("no_ans_f1", "NoAns", "unanswerable questions that the model left unanswered"),
    ("forced_f1", "Forced F1", "answerable questions when the model must answer"),
    ("always_abstain", "Always abstain", "what answering nothing would score"),
)


def _examples(
    asked: Sequence[measure.Asked], readings: Sequence[Reading], threshold: float
) -> list[page.Example]:
    """Questions spread evenly over the data, with the model's answers at its threshold."""
    chosen = np.unique(np.linspace(0, len(asked) - 1, _EXAMPLES).astype(int))
    return [_example(asked[i], readings[i], threshold) for i in chosen]


def _example(each: measure.Asked, reading: Reading, threshold: float) -> page.Example:
    best = reading.spans[0] if reading.spans and reading.na_prob <= threshold else None
    predicted = each.context[best.start : best.end] if best else None
    golds = [answer.text for answer in each.question.answers] or [""]
    return page.Example(
        question=each.question.question,
        context=each.context,
        gold=golds[0] or None,
        predicted=predicted,
        start=best.start if best else 0,
        end=best.end if best else 0,
        na_prob=reading.na_prob,
        f1=max(squad_metrics.f1(gold, predicted or "") for gold in golds),
    )


def _percent(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}"
