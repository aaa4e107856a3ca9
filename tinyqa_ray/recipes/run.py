"""Runs a recipe: its stages in order, each in its own folder; finished stages are not run again."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tinyqa_ray.answer import AnswerReport, answer
from tinyqa_ray.augment import AugmentReport, augment
from tinyqa_ray.configs import (
    LAYER_OBJECTIVES,
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
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.evaluate import EvaluateReport, evaluate
from tinyqa_ray.export import ExportReport, export
from tinyqa_ray.gather import GatherReport, gather
from tinyqa_ray.models import pretrained, weights
from tinyqa_ray.models.tokenizers import same_tokens
from tinyqa_ray.recipes.recipe import Recipe, StageConfig, references, resolved
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
    """The result of one stage of a recipe."""

    name: str
    report: StageReport
    seconds: float
    """Seconds that the stage took when it ran, perhaps in an earlier run."""
    was_finished: bool
    """Whether an earlier run had finished it."""
    output: str
    """The stage's folder."""


def run(
    recipe: Recipe,
    output: str,
    starting: Callable[[str], stage_folder.Progress | None] = lambda name: None,
    done: Callable[[StageResult], None] = lambda result: None,
    chosen: Collection[str] | None = None,
) -> list[StageResult]:
    """Run the stages of a recipe under ``output``; a second run does only what is left.

    Args:
        recipe: the recipe to run.
        output: folder for all stages, local or a URL that every worker reaches.
        starting: called with each stage's name as it begins; returns the function that gets its progress.
        done: called with each stage's result.
        chosen: names of the stages to run; all when not given. Other stages that they read must be finished.

    Raises:
        InputError: a stage cannot run as configured, reads a stage that is neither chosen nor finished, or
            its folder belongs to another config. Models with pickled weights only, and teachers whose layers
            the student cannot learn since they read other tokens, are refused before the first stage begins.
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
                f"add --stage {' '.join(missing)}"
            )
    for name, config in stages:
        if name not in finished:
            _refuse_pickles(config)
    for name, config in stages:
        if name not in finished and isinstance(config, DistillConfig):
            _refuse_other_tokens(name, config, recipe)
    # One connection to Ray serves all stages; it is not needed if all of them are finished.
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


def _refuse_pickles(config: StageConfig) -> None:
    """Refuse models that a stage cannot read, now rather than after the hours that the stages before take."""
    named: tuple[str | None, ...] = ()
    if isinstance(config, DistillConfig):
        named = (config.student, config.teacher, *config.soup_with)
    elif isinstance(config, TeacherLogitsConfig):
        named = tuple(name for name in config.teachers if name.startswith("@") or not is_exported(name))
    for name in named:
        if name is not None and not name.startswith("@"):
            with pretrained.readable(name) as folder:
                pretrained.refuse_pickles(name, folder)


def _refuse_other_tokens(name: str, config: DistillConfig, recipe: Recipe) -> None:
    """Refuse a teacher whose layers cannot be compared with the student's, for the same reason."""
    layers = next((each for each in config.objective if each in LAYER_OBJECTIVES), None)
    if layers is None or config.teacher is None:
        return
    student, teacher = (_origin(model, recipe) for model in (config.student, config.teacher))
    if student is None or teacher is None or student == teacher:
        return
    tokenizers = pretrained.load_tokenizer(student), pretrained.load_tokenizer(teacher)
    try:
        same_tokens(*tokenizers)
    except InputError as error:
        raise InputError(
            f"stage {name}: {error}, since objective '{layers}' compares their layers token by token"
            f"{_instead(teacher, recipe)}"
        ) from None


def _instead(teacher: str, recipe: Recipe) -> str:
    """The end of a refusal: the option that takes a teacher of any vocabulary; empty if there is none."""
    logits = [
        name for name, config in recipe.stages if isinstance(config, TeacherLogitsConfig) and config.teachers
    ]
    try:
        weights.check_qa_model(teacher)
    except InputError:
        return ""  # an encoder predicts no answers
    if not logits:
        return ""
    return f"; or let it teach its predictions, in any vocabulary (--{logits[0]}.teachers {teacher})"


def _origin(model: str, recipe: Recipe) -> str | None:
    """The model whose tokenizer a model has: what the stages that make it start from; None if unknown."""
    stages = dict(recipe.stages)
    while model.startswith("@"):
        config = stages[model[1:].split("/")[0]]
        if isinstance(config, DistillConfig):
            model = config.student
        elif isinstance(config, ExportConfig):
            model = config.model
        else:
            return None
    return model
