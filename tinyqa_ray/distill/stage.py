"""The distillation stage: windows and a student in, a taught student out, on Ray Train."""

from __future__ import annotations

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.distill.report import CHECKPOINTS, DistillReport


def distill(
    config: DistillConfig, output: str, progress: stage_folder.Progress | None = None
) -> DistillReport:
    """Train a student on Ray Train and publish it as the model folder ``output/model``.

    When run again after a kill, it continues from its last checkpoint.

    Raises:
        InputError: windows or models that cannot be read or do not fit together, a folder of another run,
            or a run that cannot go on (a loss that is not finite, no memory, no disk).
    """
    inputs = ("data", "student", "soup_with", "teacher", "dev", "baseline")
    # Checkpoints are of no use once the student is published.
    with stage_folder.stage(output, config, inputs=inputs, scratch=(CHECKPOINTS,)) as stage:
        if stage.finished:
            return stage.report(DistillReport)
        from tinyqa_ray.distill.work import work

        return stage.publish(work(config, stage, progress))
