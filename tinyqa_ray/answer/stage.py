"""The answering stage: documents and questions → answers in Parquet, on Ray Data."""

from __future__ import annotations

from tinyqa_ray.answer.report import WORK, AnswerReport
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import bundled, stage_folder
from tinyqa_ray.corpus import files
from tinyqa_ray.models.settings import ModelSettings, keep_of, read_settings


def answer(config: AnswerConfig, output: str, progress: stage_folder.Progress | None = None) -> AnswerReport:
    """Answer questions about a corpus; write ``answers/*.parquet`` (schema ``ANSWERS``) under ``output``.

    Documents that are files (PDF, DOCX, web pages, …) are converted first; their texts are kept in ``texts``,
    and their answers have the columns of ``PLACED``. A question that cannot be asked or a document that
    cannot be read becomes a row with ``error``. An interrupted run continues when it is started again.

    Raises:
        InputError: files or the model cannot be read, or the folder belongs to another run.
    """
    settings = read_settings(config.model, config.settings)
    are_files = config.documents is not None and files.find(config.documents) is not None
    inputs: tuple[str, ...] = ("model", "documents", "questions", "pairs")
    extra = {stage_folder.SETTINGS: settings.identity}
    if config.first_pass is not None:
        inputs = (*inputs, "first_pass")
        extra["first_pass_keep"] = str(keep_of(config.first_pass, config.first_pass_keep, settings))
    if (ranks := _ranks(config, settings)) is not None:
        extra["ranks"] = ranks
    with stage_folder.stage(
        output,
        config,
        inputs=inputs,
        extra=extra,
        scratch=(WORK,),
        whole=("documents",) if are_files else (),
    ) as stage:
        if stage.finished:
            return stage.report(AnswerReport)
        from tinyqa_ray.answer.work import work

        return stage.publish(work(config, settings, stage, progress))


def _ranks(config: AnswerConfig, settings: ModelSettings) -> str | None:
    """Identity of what was fitted for second and later answers; None where it decides nothing.

    The ranks of the shipped model do not count in a run for which they were not fitted when it was begun.
    """
    new = config.evidence or config.top_k == "all"
    given = config.settings is not None or config.model not in (bundled.MODEL, bundled.INT8)
    if not settings.rank_temperatures or not (new or (given and config.top_k != 1)):
        return None
    return f"temperatures {settings.rank_temperatures}, shifts {settings.rank_shifts}"
