"""The recipe of the quickstart: every stage on bundled data, in minutes."""

from __future__ import annotations

from importlib.resources import files

from tinyqa_ray import models
from tinyqa_ray.configs import (
    AnswerConfig,
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    TeacherLogitsConfig,
)
from tinyqa_ray.stages import Recipe, with_baseline


def bundled(name: str) -> str:
    """Path of a file that the package carries (see its ATTRIBUTION.md)."""
    return str(files("tinyqa_ray") / "data" / name)


def quickstart(
    teacher: str | None = None,
    data: str | None = None,
    dev: str | None = None,
    student_layers: tuple[int, ...] | None = None,
    baseline: bool = False,
) -> Recipe:
    """Every stage on real data within minutes on two cores: small excerpt, small teacher, smaller student.

    Args:
        teacher: Encoder or question-answering model to make the teacher of; MiniLM-L6 of the ``quickstart``
            extra when not given.
        data: SQuAD 2.0 data to learn from; the bundled excerpt when not given.
        dev: SQuAD 2.0 data to measure on; the bundled excerpt when not given.
        student_layers: The teacher's layers that the student keeps, from 0; every second when not given.
        baseline: Also teach the same student by labels alone, to compare with.
    """
    encoder = teacher or models.default_encoder()
    layers = int(models.load_config(encoder).num_hidden_layers)
    kept = student_layers or tuple(range(layers % 2 + 1, layers, 2))
    train, measured = data or bundled("squad2_train.json"), dev or bundled("squad2_dev.json")
    calibration = bundled("squad2_calibration.json")
    taught = DistillConfig(
        data="@teacher-logits",
        student="@intermediate/model",
        objective=("prediction",),
        distillation_weight=0.75,
        temperature=1.5,
        epochs=1.5,
        batch_size=8,
        learning_rate=3e-4,
        attention_dropout=0.0,
        dev=measured,
        checkpoint_steps=150,
    )
    return Recipe(
        name="quickstart",
        stages=(
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
                    objective=("intermediate",),
                    epochs=0.5,
                    batch_size=8,
                    learning_rate=5e-4,
                    attention_dropout=0.0,
                    checkpoint_steps=150,
                ),
            ),
            *with_baseline(taught, "@teacher/model", kept, baseline),
            (
                "teacher-evaluation",
                EvaluateConfig(model="@teacher/model", data=measured, fit_threshold=calibration),
            ),
            (
                "student-evaluation",
                EvaluateConfig(model="@student/model", data=measured, fit_threshold=calibration),
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
