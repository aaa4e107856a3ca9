"""The recipe of the quickstart: every stage on bundled data, in minutes."""

from __future__ import annotations

from tinyqa_ray.configs import AnswerConfig, AugmentConfig, DistillConfig, EvaluateConfig, TeacherLogitsConfig
from tinyqa_ray.core import bundled
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes.recipe import Recipe, Stages, with_baseline


def quickstart(
    teacher: str | None = None,
    data: str | None = None,
    dev: str | None = None,
    student_layers: tuple[int, ...] | None = None,
    baseline: bool = False,
) -> Recipe:
    """Every stage on real data within minutes on two cores: small excerpt, small teacher, smaller student.

    Args:
        teacher: Encoder or question-answering model that is first taught by labels, and then is the teacher;
            when not given, the model that the package ships is the teacher, as it is.
        data: SQuAD 2.0 data to learn from; the bundled excerpt when not given.
        dev: SQuAD 2.0 data to measure on; the bundled excerpt when not given.
        student_layers: Layers of the teacher that the student keeps, from 0; every second when not given.
        baseline: Also teach the same student by labels alone, to compare with.
    """
    start = teacher or bundled.MODEL
    layers = int(pretrained.load_config(start).num_hidden_layers)
    kept = student_layers or tuple(range(layers % 2 + 1, layers, 2))
    train, measured = data or bundled.asset("squad2_train.json"), dev or bundled.asset("squad2_dev.json")
    calibration = bundled.asset("squad2_calibration.json")
    taught = DistillConfig(
        data="@teacher-logits",
        student="@intermediate/model",
        objective=("prediction",),
        distillation_weight=0.75,
        temperature=1.5,
        epochs=2,
        batch_size=8,
        learning_rate=3e-4,
        attention_dropout=0.0,
        dev=measured,
        checkpoint_steps=150,
    )
    taught_here: Stages = () if teacher is None else _taught(teacher, train, measured)
    # The shipped model's settings are stored with it; they were fitted on the articles of ``calibration``.
    by, fitted = (bundled.MODEL, None) if teacher is None else ("@teacher/model", calibration)
    return Recipe(
        name="quickstart",
        stages=(
            *taught_here,
            ("augmented", AugmentConfig(data=train, embeddings=start, copies=2, rows_per_shard=32)),
            ("teacher-logits", TeacherLogitsConfig(data="@augmented", teachers=(by,))),
            (
                "intermediate",
                DistillConfig(
                    data="@teacher-logits",
                    student=by,
                    student_layers=kept,
                    teacher=by,
                    objective=("intermediate",),
                    epochs=1,
                    batch_size=8,
                    learning_rate=5e-4,
                    attention_dropout=0.0,
                    checkpoint_steps=150,
                ),
            ),
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
            (
                "answers",
                AnswerConfig(
                    model="@student/model",
                    settings="@student-evaluation",
                    documents=bundled.asset("corpus_documents.jsonl"),
                    questions=bundled.asset("corpus_questions.jsonl"),
                    rows_per_shard=32,
                ),
            ),
        ),
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
