"""The teachers' pass: paragraphs → windows with labels and, given teachers, their logits, on Ray Data.

Plain text becomes windows too, for general distillation: the first stage of TinyBERT (arXiv 1909.10351),
in which the student learns the teacher's layers from texts without questions.
"""

from __future__ import annotations

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.teacher_logits.null_shifts import null_shifts
from tinyqa_ray.teacher_logits.report import TeacherLogitsReport


def teacher_logits(
    config: TeacherLogitsConfig, output: str, progress: stage_folder.Progress | None = None
) -> TeacherLogitsReport:
    """Write windows, and the logits of the teachers for them, as Arrow under ``output/windows``.

    When run again after an interruption, it continues. A later stage memory-maps the
    files. The windows of plain text do not overlap, and have neither questions nor labels nor logits.

    Raises:
        InputError: data or models that cannot be read, a teacher whose tokens are not the student's,
            teachers for plain text, or a folder of another run.
    """
    shifts = null_shifts(config)
    extra = {stage_folder.SETTINGS: f"null shifts {shifts}"} if config.abstain_at_threshold else {}
    with stage_folder.stage(output, config, inputs=("data", "tokenizer", "teachers"), extra=extra) as stage:
        if stage.finished:
            return stage.report(TeacherLogitsReport)
        from tinyqa_ray.teacher_logits.work import work

        return stage.publish(work(config, shifts, stage, progress))
