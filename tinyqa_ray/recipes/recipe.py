"""A recipe's stages, and how a later stage reads what an earlier one made.

A recipe is a list of named stages. A path that starts with ``@`` is the output of an earlier stage:
``@teacher/model`` is the folder ``model`` that stage ``teacher`` made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GatherConfig,
    TeacherLogitsConfig,
)
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

StageConfig = (
    GatherConfig
    | AugmentConfig
    | TeacherLogitsConfig
    | DistillConfig
    | EvaluateConfig
    | ExportConfig
    | AnswerConfig
)
Config = TypeVar("Config", bound=StageConfig)
Stages = tuple[tuple[str, StageConfig], ...]
"""Name and config of each stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Stages in the order in which they run."""

    name: str
    stages: Stages
    """Names and configs of the stages; a stage's name is also the name of its folder."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, config in self.stages:
            for path in references(config):
                if path not in seen:
                    raise InputError(
                        f"recipe {self.name}: stage {name} reads @{path}, which no earlier one makes"
                    )
            seen.add(name)


def references(config: StageConfig) -> list[str]:
    """Names of the stages whose output a config reads."""
    paths = [path for field in fields(config) for path in _references(getattr(config, field.name))]
    return [path[1:].split("/")[0] for path in paths]


def is_wired(config: StageConfig, field: str) -> bool:
    """Whether a field of the config holds the output of an earlier stage."""
    return bool(_references(getattr(config, field)))


def resolved(config: Config, output: str) -> Config:
    """The config with its ``@`` paths replaced by folders under ``output``."""

    def folder(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(folder, value))
        return storage.join(output, value[1:]) if _references(value) else value

    return replace(config, **{field.name: folder(getattr(config, field.name)) for field in fields(config)})


def with_baseline(taught: DistillConfig, start: str, layers: tuple[int, ...] | None, wanted: bool) -> Stages:
    """The stage ``student`` and, if ``wanted``, the stage ``baseline`` before it, taught by labels alone.

    Args:
        taught: how the student is taught in its last stage; measured on dev.
        start: model that the student's first stage starts from; the baseline starts from it, too.
        layers: layers of ``start`` that are kept, from 0; None for all.
        wanted: whether there is a baseline.
    """
    if not wanted:
        return (("student", taught),)
    baseline = replace(
        taught,
        student=start,
        student_layers=layers,
        objective=("labels",),
        objective_weights=None,
        teacher=None,
        distillation_weight=1.0,
        temperature=1.0,
    )
    return (("baseline", baseline), ("student", replace(taught, baseline="@baseline/model")))


def _references(value: Any) -> list[str]:
    """The ``@`` paths in a value: the value itself or, in a tuple, its elements."""
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, str) and each.startswith("@")]
