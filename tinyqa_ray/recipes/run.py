"""Running a recipe: its stages in order, each in its folder, finished ones left alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tinyqa_ray.answer import AnswerReport, answer
from tinyqa_ray.augment import AugmentReport, augment
from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GatherConfig,
    TeacherLogitsConfig,
)
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.cluster import connected
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import DistillReport, distill
from tinyqa_ray.evaluate import EvaluateReport, evaluate
from tinyqa_ray.export import ExportReport, export
from tinyqa_ray.gather import GatherReport, gather
from tinyqa_ray.recipes.recipe import Recipe, references, resolved
from tinyqa_ray.teacher_logits import TeacherLogitsReport, teacher_logits

StageReport = (
    GatherReport
    | AugmentReport
    | TeacherLogitsReport
    | DistillReport
    | EvaluateReport
    | ExportReport
    | AnswerReport
)
Progress = Callable[[int, int], None]
"""Called with units done and units in all."""

_STAGES: dict[type, Callable[..., StageReport]] = {
    GatherConfig: gather,
    AugmentConfig: augment,
    TeacherLogitsConfig: teacher_logits,
    DistillConfig: distill,
    EvaluateConfig: evaluate,
    ExportConfig: export,
    AnswerConfig: answer,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class StageResult:
    """One stage of a recipe, done."""

    name: str
    report: StageReport
    seconds: float
    """What the stage took when it ran, perhaps in an earlier run."""
    was_finished: bool
    """Whether an earlier run had finished it."""
    output: str
    """Its folder."""


def run(
    recipe: Recipe,
    output: str,
    starting: Callable[[str], Progress | None] = lambda name: None,
    done: Callable[[StageResult], None] = lambda result: None,
    chosen: Collection[str] | None = None,
) -> list[StageResult]:
    """Run the stages of a recipe under ``output``; run again, it does only what is left.

    Args:
        recipe: what to run.
        output: folder of all stages, local or a URL that every worker reaches.
        starting: called with each stage's name as it begins; returns where its progress goes.
        done: called with each stage's result.
        chosen: names of the stages to run, if not all; what they read from others must be finished.

    Raises:
        InputError: a stage cannot run as configured, reads one that is neither chosen nor finished, or its
            folder belongs to another config.
    """
    results = []
    stages = [(name, config) for name, config in recipe.stages if chosen is None or name in chosen]
    folders = {name: storage.join(output, name) for name, _ in stages}
    finished = {name for name, folder in folders.items() if stage_folder.is_finished(folder)}
    for name, config in stages:
        others = [other for other in dict.fromkeys(references(config)) if other not in folders]
        if missing := [
            other for other in others if not stage_folder.is_finished(storage.join(output, other))
        ]:
            raise InputError(
                f"stage {name} reads {' and '.join(missing)}, not finished in {output}; "
                f"run first, or as well, --stage {' '.join(missing)}"
            )
    # One Ray for all stages; none where nothing is left to do.
    with connected() if len(finished) < len(folders) else nullcontext():
        for name, config in stages:
            folder, was_finished = folders[name], name in finished
            progress = starting(name)
            report = _STAGES[type(config)](resolved(config, output), folder, progress)
            document: dict[str, Any] = storage.read_json(storage.join(folder, stage_folder.SUCCESS))
            result = StageResult(
                name=name,
                report=report,
                seconds=float(document["seconds"]),
                was_finished=was_finished,
                output=folder,
            )
            done(result)
            results.append(result)
    return results
