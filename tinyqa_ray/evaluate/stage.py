"""The evaluation stage: a model and SQuAD 2.0 questions → metrics, predictions, a page to read."""

from __future__ import annotations

from dataclasses import replace

from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.evaluate.report import EvaluateReport
from tinyqa_ray.models.settings import ModelSettings, read_settings


def evaluate(
    config: EvaluateConfig, output: str, progress: stage_folder.Progress | None = None
) -> EvaluateReport:
    """Measure ``config.model`` on ``config.data``.

    Writes ``predictions.json`` (the best span of every question, before abstaining), ``na_probs.json``,
    ``metrics.json`` and ``report.html``; if something is fitted, also ``tinyqa.json``, the settings that
    other commands take. ``tinyqa score`` with both JSON files and the threshold gives the same EM and F1.

    Raises:
        InputError: the model or data cannot be read, or the fit would use questions that are measured.
    """
    settings = _before_fitting(config)
    inputs: tuple[str, ...] = ("model", "ensemble_with", "data", "fit_threshold", "fit_temperature")
    if config.first_pass is not None:
        inputs = (*inputs, "first_pass", "fit_first_pass")
    extra = {stage_folder.SETTINGS: settings.identity}
    with stage_folder.stage(output, config, inputs=inputs, extra=extra) as stage:
        if stage.finished:
            return stage.report(EvaluateReport)
        from tinyqa_ray.evaluate.work import work

        return stage.publish(work(config, settings, stage, progress))


def _before_fitting(config: EvaluateConfig) -> ModelSettings:
    """The given settings, with defaults for what is to be fitted anew."""
    given, default = read_settings(config.model, config.settings), ModelSettings()
    if config.fit_threshold is not None:
        given = replace(given, no_answer_threshold=default.no_answer_threshold, fitted_on=default.fitted_on)
    if config.fit_temperature is not None:
        given = replace(
            given,
            temperature=default.temperature,
            score_shift=default.score_shift,
            temperature_fitted_on=default.temperature_fitted_on,
            rank_temperatures=(),
            rank_shifts=(),
            ranks_fitted_on=None,
        )
    if config.fit_first_pass is not None:
        given = replace(given, first_pass_keep=None, first_pass_fitted_for=None, first_pass_fitted_on=None)
    return given
