"""The stage of suites: several models and test sets → one table, a page to read."""

from __future__ import annotations

from tinyqa_ray.configs import SuiteConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.evaluate.suite_report import SuiteReport
from tinyqa_ray.models.settings import read_settings


def evaluate_suites(
    config: SuiteConfig, output: str, progress: stage_folder.Progress | None = None
) -> SuiteReport:
    """Measure every model on every part of the suites.

    Writes ``metrics.json`` (the table), ``report.html``, and for each model and part a file in ``measured``
    with its figures, predictions (the best span of each question, before abstaining) and ``na_probs``. An
    interrupted run continues with the first part that has no such file.

    Raises:
        InputError: a model or test data cannot be read, or the folder belongs to another run.
    """
    given = config.settings or (None,) * len(config.models)
    settings = [read_settings(model, path) for model, path in zip(config.models, given, strict=True)]
    extra = {stage_folder.SETTINGS: "; ".join(each.identity for each in settings)}
    with stage_folder.stage(output, config, inputs=("models", "suite_folder"), extra=extra) as stage:
        if stage.finished:
            return stage.report(SuiteReport)
        from tinyqa_ray.evaluate.suite_work import work

        return stage.publish(work(config, settings, stage, progress))
