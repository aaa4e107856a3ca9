"""Recipes: a whole job as a function that returns a frozen config, with every number in sight.

A recipe is a list of named stages. A path that starts with ``@`` is the output of an earlier stage:
``@teacher/model`` is the folder ``model`` that stage ``teacher`` made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from importlib.resources import files
from typing import Any, TypeVar

from tinyqa_ray import models, storage
from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    TeacherLogitsConfig,
)
from tinyqa_ray.errors import InputError

StageConfig = AugmentConfig | TeacherLogitsConfig | DistillConfig | EvaluateConfig | AnswerConfig
Config = TypeVar("Config", bound=StageConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Stages in the order in which they run."""

    name: str
    stages: tuple[tuple[str, StageConfig], ...]
    """Name and config of each stage; the name is also its folder's."""

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
    values = [getattr(config, field.name) for field in fields(config)]
    paths = [path for value in values for path in (value if isinstance(value, tuple) else (value,))]
    return [path[1:].split("/")[0] for path in paths if isinstance(path, str) and path.startswith("@")]


def resolved(config: Config, output: str) -> Config:
    """The config with its ``@`` paths as folders under ``output``."""

    def folder(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(folder, value))
        is_reference = isinstance(value, str) and value.startswith("@")
        return storage.join(output, value[1:]) if is_reference else value

    return replace(config, **{field.name: folder(getattr(config, field.name)) for field in fields(config)})


def bundled(name: str) -> str:
    """Path of a file that the package carries (see its ATTRIBUTION.md)."""
    return str(files("tinyqa_ray") / "data" / name)


def quickstart(teacher: str | None = None) -> Recipe:
    """Every stage on real data within minutes on two cores: small excerpt, small teacher, smaller student.

    Args:
        teacher: encoder or question-answering model to make the teacher of; MiniLM-L6 of the ``quickstart``
            extra when not given.
    """
    encoder = teacher or models.default_encoder()
    layers = int(models.load_config(encoder).num_hidden_layers)
    kept = tuple(range(layers % 2 + 1, layers, 2))
    train, dev = bundled("squad2_train.json"), bundled("squad2_dev.json")
    calibration = bundled("squad2_calibration.json")
    return Recipe(
        name="quickstart",
        stages=(
            ("windows", TeacherLogitsConfig(data=train, tokenizer=encoder)),
            (
                "teacher",
                DistillConfig(
                    data="@windows",
                    student=encoder,
                    objective="labels",
                    epochs=3,
                    batch_size=8,
                    learning_rate=3e-4,
                    attention_dropout=0.0,
                    checkpoint_steps=100,
                ),
            ),
            ("augmented", AugmentConfig(data=train, embeddings=encoder, copies=2, rows_per_shard=32)),
            (
                "teacher-logits",
                TeacherLogitsConfig(data="@augmented", tokenizer="@teacher/model", model=("@teacher/model",)),
            ),
            (
                "intermediate",
                DistillConfig(
                    data="@teacher-logits",
                    student="@teacher/model",
                    student_layers=kept,
                    teacher="@teacher/model",
                    objective="intermediate",
                    epochs=0.5,
                    batch_size=8,
                    learning_rate=5e-4,
                    attention_dropout=0.0,
                    checkpoint_steps=100,
                ),
            ),
            (
                "student",
                DistillConfig(
                    data="@teacher-logits",
                    student="@intermediate/model",
                    objective="prediction",
                    distillation_weight=0.75,
                    temperature=1.5,
                    epochs=1.5,
                    batch_size=8,
                    learning_rate=3e-4,
                    attention_dropout=0.0,
                    checkpoint_steps=100,
                ),
            ),
            (
                "teacher-evaluation",
                EvaluateConfig(model="@teacher/model", data=dev, fit_threshold=calibration),
            ),
            (
                "student-evaluation",
                EvaluateConfig(model="@student/model", data=dev, fit_threshold=calibration),
            ),
            (
                "answers",
                AnswerConfig(
                    model="@student/model",
                    documents=bundled("corpus_documents.jsonl"),
                    questions=bundled("corpus_questions.jsonl"),
                    rows_per_shard=32,
                ),
            ),
        ),
    )


def tinyroberta(data: str = "squad_v2:train", dev: str = "squad_v2:validation") -> Recipe:
    """``deepset/tinyroberta-squad2``: 6 x 768 RoBERTa; published EM 78.69, F1 81.92 on SQuAD 2.0 dev.

    Stage 0 (general distillation) is in the published student that it starts from. Numbers of stage 2 are
    the model card's; those of stage 1, which the card does not give, are our choice.
    """
    student = "deepset/tinyroberta-6l-768d"
    return Recipe(
        name="tinyroberta",
        stages=(
            (
                "augmented",
                # Cased, as the student is; words that it splits get neighbours in its own embeddings.
                AugmentConfig(data=data, masked_lm="roberta-base", actors=4, num_gpus_per_actor=1),
            ),
            ("windows", TeacherLogitsConfig(data="@augmented", tokenizer=student, actors=16)),
            (
                "intermediate",
                DistillConfig(
                    data="@windows",
                    student=student,
                    teacher="deepset/roberta-base-squad2",
                    objective="intermediate",
                    batch_size=96,  # our choice, like the four below
                    epochs=2,
                    learning_rate=5e-5,
                    warmup=0.2,
                    checkpoint_steps=1000,
                    workers=4,
                    use_gpu=True,
                ),
            ),
            (
                "teacher-logits",
                TeacherLogitsConfig(
                    data=data,
                    tokenizer=student,
                    model=("deepset/roberta-large-squad2",),
                    max_batch_tokens=32768,
                    actors=4,
                    num_gpus_per_actor=1.0,
                ),
            ),
            (
                "student",
                DistillConfig(
                    data="@teacher-logits",
                    student="@intermediate/model",
                    objective="prediction",
                    distillation_weight=0.75,
                    temperature=1.5,
                    batch_size=96,
                    epochs=4,
                    learning_rate=3e-5,
                    warmup=0.2,
                    checkpoint_steps=500,
                    workers=4,
                    use_gpu=True,
                ),
            ),
            ("evaluation", EvaluateConfig(model="@student/model", data=dev)),
        ),
    )


def tinybert(data: str = "squad_v2:train", dev: str = "squad_v2:validation") -> Recipe:
    """``deepset/tinybert-6l-768d-squad2``: published EM 71.88, F1 76.36 on SQuAD 2.0 dev.

    The published general student, then two stages with the numbers of the model card; what it does not
    give (the warm-up of stage 1) is our choice.
    """
    student, teacher = "huawei-noah/TinyBERT_General_6L_768D", "deepset/bert-base-uncased-squad2"
    return Recipe(
        name="tinybert",
        stages=(
            (
                "augmented",
                AugmentConfig(data=data, masked_lm="bert-base-uncased", actors=4, num_gpus_per_actor=1),
            ),
            ("windows", TeacherLogitsConfig(data="@augmented", tokenizer=student, actors=16)),
            (
                "intermediate",
                DistillConfig(
                    data="@windows",
                    student=student,
                    teacher=teacher,
                    objective="intermediate",
                    batch_size=26,
                    epochs=5,
                    learning_rate=5e-5,
                    warmup=0.2,  # our choice
                    temperature=1.0,
                    head_dropout=0.1,
                    checkpoint_steps=2000,
                    use_gpu=True,
                ),
            ),
            (
                "teacher-logits",
                TeacherLogitsConfig(
                    data=data,
                    tokenizer=student,
                    model=(teacher,),
                    max_batch_tokens=32768,
                    num_gpus_per_actor=1.0,
                ),
            ),
            (
                "student",
                DistillConfig(
                    data="@teacher-logits",
                    student="@intermediate/model",
                    objective="prediction",
                    distillation_weight=1.0,
                    temperature=1.0,
                    batch_size=26,
                    epochs=5,
                    learning_rate=3e-5,
                    warmup=0.2,
                    head_dropout=0.1,
                    checkpoint_steps=2000,
                    use_gpu=True,
                ),
            ),
            ("evaluation", EvaluateConfig(model="@student/model", data=dev)),
        ),
    )
