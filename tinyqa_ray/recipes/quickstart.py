"""The recipe of the quickstart: every stage on bundled data, in minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    Objective,
    TeacherLogitsConfig,
)
from tinyqa_ray.core import bundled
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes.recipe import Recipe, Stages, with_baseline

_KEPT = (0, 2, 3, 4)
"""Layers of the shipped model of which a student is made: one of the two choices of four that read best
before any training, with 80 % of the teacher's forced F1; the worst has 16 % (``benchmarks/layers.py``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class About:
    """What a stage of the quickstart does and what for, for those who watch it."""

    purpose: str
    seconds: float
    """About what it takes on two cores, for an estimate of the time that is left; what ran corrects it."""


ABOUT: Mapping[str, About] = {
    "first-answers": About(purpose="the model of the package answers a small corpus", seconds=12),
    "windows": About(purpose="questions and texts become tokens with their answers", seconds=10),
    "teacher": About(purpose="the encoder learns from labels, to be the teacher", seconds=300),
    "augmented": About(purpose="copies with other words: more to learn from than people wrote", seconds=7),
    "teacher-logits": About(
        purpose="the teacher says how sure it is of every token as an answer", seconds=36
    ),
    "baseline": About(purpose="the same student learns from labels alone, to compare with", seconds=100),
    "student": About(purpose="the student learns what the teacher answers", seconds=75),
    "teacher-evaluation": About(
        purpose="how well the teacher answers questions that are new to it", seconds=4
    ),
    "student-evaluation": About(purpose="how well the student does; its threshold is fitted", seconds=5),
    "answers": About(purpose="the student answers the corpus", seconds=6),
}
"""What each stage that a quickstart may have is for."""


def quickstart(
    teacher: str | None = None,
    data: str | None = None,
    dev: str | None = None,
    student_layers: tuple[int, ...] | None = None,
    baseline: bool = False,
) -> Recipe:
    """Every stage on real data within five minutes on two cores: a small teacher, a smaller student.

    Args:
        teacher: Encoder or question-answering model that is first taught by labels, and then is the teacher;
            when not given, the model that the package ships is the teacher, as it is.
        data: SQuAD 2.0 data to learn from; the bundled excerpt when not given.
        dev: SQuAD 2.0 data to measure on; the bundled excerpt when not given.
        student_layers: Layers of the teacher that the student keeps, from 0; when not given, of the
            shipped model four that read well as they are, of others every second.
        baseline: Also teach the same student by labels alone, to compare with.
    """
    start = teacher or bundled.MODEL
    kept = student_layers or (_KEPT if teacher is None else _every_second(teacher))
    calibration = bundled.asset("squad2_calibration.json")
    # The shipped model's settings are stored with it; they were fitted on the articles of ``calibration``.
    by, fitted = (bundled.MODEL, None) if teacher is None else ("@teacher/model", calibration)
    train, measured = data or bundled.asset("squad2_train.json"), dev or bundled.asset("squad2_dev.json")
    # Layers that read well as they are need the teacher's predictions only.
    objective: tuple[Objective, ...] = ("prediction",) if teacher is None else ("intermediate", "prediction")
    taught = DistillConfig(
        data="@teacher-logits",
        student=by,
        student_layers=kept,
        objective=objective,
        teacher=None if teacher is None else by,
        epochs=1 if teacher is None else 2,
        distillation_weight=0.75,
        temperature=1.5,
        batch_size=16,
        learning_rate=3e-4,
        attention_dropout=0.0,
        # Their optimiser's step takes longer than the rest of so small a student's.
        freeze_embeddings=True,
        dev=measured,
        checkpoint_steps=150,
    )
    begun = _first_answers() if teacher is None else _taught(teacher, train, measured)
    return Recipe(
        name="quickstart",
        stages=(
            *begun,
            ("augmented", AugmentConfig(data=train, embeddings=start, copies=1, rows_per_shard=32)),
            ("teacher-logits", TeacherLogitsConfig(data="@augmented", teachers=(by,))),
            *with_baseline(taught, by, kept, baseline),
            (
                "teacher-evaluation",
                EvaluateConfig(model=by, data=measured, fit_threshold=fitted, fit_temperature=fitted),
            ),
            (
                "student-evaluation",
                EvaluateConfig(
                    model="@student/model",
                    data=measured,
                    fit_threshold=calibration,
                    fit_temperature=calibration,
                ),
            ),
            ("answers", _answered("@student/model", settings="@student-evaluation")),
        ),
    )


def _every_second(model: str) -> tuple[int, ...]:
    layers = int(pretrained.load_config(model).num_hidden_layers)
    return tuple(range(layers % 2 + 1, layers, 2))


def _first_answers() -> Stages:
    """The shipped model answers the corpus: what all of this is about, before anything is made."""
    return (("first-answers", _answered(bundled.MODEL, precision="fp32")),)


def _answered(model: str, settings: str | None = None, precision: str | None = None) -> AnswerConfig:
    return AnswerConfig(
        model=model,
        settings=settings,
        documents=bundled.asset("corpus_documents.jsonl"),
        questions=bundled.asset("corpus_questions.jsonl"),
        rows_per_shard=32,
        # Nobody waits here for a faster form to be made.
        precision=precision,
    )


def _taught(encoder: str, train: str, measured: str) -> Stages:
    """The stages that turn ``encoder`` into a teacher, by labels."""
    return (
        ("windows", TeacherLogitsConfig(data=train, tokenizer=encoder)),
        (
            "teacher",
            DistillConfig(
                data="@windows",
                student=encoder,
                objective=("labels",),
                epochs=3,
                batch_size=8,
                learning_rate=3e-4,
                attention_dropout=0.0,
                dev=measured,
                checkpoint_steps=150,
            ),
        ),
    )
