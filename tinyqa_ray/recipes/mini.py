"""The recipe of the model that the package ships."""

from __future__ import annotations

from dataclasses import replace

from tinyqa_ray.configs import (
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    GatherConfig,
    TeacherLogitsConfig,
)
from tinyqa_ray.gather.stage import HELD_OUT
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes.recipe import Recipe, Stages


def mini(
    data: str = "rajpurkar/squad_v2:train",
    dev: str = "rajpurkar/squad_v2:validation",
    more: tuple[str, ...] = (),
    documents: str | None = None,
    questions: str | None = None,
    hold_out: tuple[str, ...] = (),
    encoder: str = "sentence-transformers/all-mpnet-base-v2",
    start: str | None = None,
    copies: int = 0,
    baseline: bool = False,
    exported: bool = False,
) -> Recipe:
    """A 6 x 384 student of a 12 x 768 teacher that has another vocabulary.

    Both learn in two steps: to find answers, on all data; then, to tell what a text does not say, from labels
    of ``data`` and of its questions rewritten so that their paragraph no longer answers them. The student's
    first step is to learn the teacher's logits, also on questions without labels. If articles are held out,
    thresholds are fitted on them, and the teacher abstains by its own on questions without labels.

    Args:
        data: SQuAD 2.0 data to learn from.
        dev: SQuAD 2.0 data to measure on; nothing is learned from it.
        more: Other data in SQuAD's format to learn from.
        documents: Passages that ``questions`` are asked of.
        questions: Questions without answers, which the student learns from its teacher alone.
        hold_out: Titles of articles of ``data`` that no model learns from: thresholds and temperatures are
            fitted on them.
        encoder: Encoder that the teacher starts from.
        start: Encoder or question-answering model that the student starts from; MiniLM-L6 of the
            ``quickstart`` extra when not given.
        copies: Augmented copies of each paragraph that the student learns from.
        baseline: Also teach the same student by labels alone, to compare with.
        exported: Run the teacher as a bf16 export, which is twice as fast on a CPU; needs the extra ``cpu``.
    """
    start = start or pretrained.default_encoder()
    gathered = GatherConfig(
        data=(data, *more), hold_out=hold_out, made_unanswerable=0.4, other_paragraph="most-similar"
    )
    rewritten = GatherConfig(data=(data,), hold_out=hold_out, rewritten=0.5, sentences_alone=0.1)
    asked = replace(
        gathered,
        documents=documents,
        questions=questions,
        made_unanswerable=0.2,
        rewritten=0.4,
        sentences_alone=0.15,
    )
    first_teacher = DistillConfig(
        data="@windows",
        student=encoder,
        objective=("labels",),
        epochs=1,
        batch_size=16,
        learning_rate=5e-5,
        attention_dropout=0.0,
        precision="bf16",
        checkpoint_steps=50,
    )
    teacher = replace(
        first_teacher, data="@rewritten-windows", student="@first-teacher/model", learning_rate=2e-5
    )
    first_student = DistillConfig(
        data="@teacher-logits",
        student=start,
        objective=("prediction",),
        # At 1, a teacher as sure as this would teach little more than its best answer.
        temperature=2.0,
        epochs=2,
        batch_size=16,
        learning_rate=1e-4,
        attention_dropout=0.0,
        precision="bf16",
        dev=dev,
        # Near its end, the training still gains answers but loses the sense of no answer.
        publish="best",
        checkpoint_steps=400,
    )
    student = replace(
        teacher, data="@student-windows", student="@first-student/model", checkpoint_steps=400, dev=dev
    )
    # Labels alone cannot teach the questions without answers in "asked".
    labels_alone = replace(first_student, data="@gathered-windows", objective=("labels",), temperature=1.0)
    fitted = f"@gathered/{HELD_OUT}" if hold_out else None
    read = "@teacher-export" if exported else "@teacher/model"

    def evaluation(name: str, model: str) -> tuple[str, EvaluateConfig]:
        config = EvaluateConfig(model=model, data=dev, fit_threshold=fitted, fit_temperature=fitted)
        return f"{name}-evaluation", config

    export: Stages = (("teacher-export", ExportConfig(model="@teacher/model", precision="bf16")),)
    copied: Stages = (("augmented", AugmentConfig(data="@asked", embeddings=start, copies=copies)),)
    compared: Stages = (
        ("gathered-windows", TeacherLogitsConfig(data="@gathered", tokenizer=start)),
        ("baseline", labels_alone),
        evaluation("baseline", "@baseline/model"),
    )
    return Recipe(
        name="mini",
        stages=(
            ("gathered", gathered),
            ("windows", TeacherLogitsConfig(data="@gathered", tokenizer=encoder)),
            ("first-teacher", first_teacher),
            ("rewritten", rewritten),
            ("rewritten-windows", TeacherLogitsConfig(data="@rewritten", tokenizer=encoder)),
            ("teacher", teacher),
            *(export if exported else ()),
            evaluation("teacher", read),
            ("asked", asked),
            *(copied if copies else ()),
            (
                "teacher-logits",
                TeacherLogitsConfig(
                    data="@augmented" if copies else "@asked",
                    tokenizer=start,
                    teachers=(read,),
                    abstain_at_threshold=bool(hold_out),
                    settings=("@teacher-evaluation",) if hold_out else (),
                ),
            ),
            *(compared if baseline else ()),
            ("first-student", first_student),
            ("student-windows", TeacherLogitsConfig(data="@rewritten", tokenizer=start)),
            ("student", replace(student, baseline="@baseline/model") if baseline else student),
            evaluation("student", "@student/model"),
            (
                "student-fp16",
                ExportConfig(
                    model="@student/model",
                    format="safetensors",
                    precision="fp16",
                    settings="@student-evaluation",
                    calibration=dev,
                ),
            ),
        ),
    )
