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
    checker: str | None = None,
    baseline: bool = False,
    exported: bool = False,
) -> Recipe:
    """A 6 x 384 student of a 12 x 768 teacher that has another vocabulary.

    There are two rounds. In the first, the teacher learns from labels to find answers, and the student learns
    its logits, also on questions without labels. In the second, the teacher learns to tell what a text does
    not say, from labels of ``data`` and of its questions rewritten so that their paragraph no longer answers
    them, and the student learns that teacher's logits. Each round's student then learns the labels of the
    second for one epoch; the model is the mean of both. If articles are held out, thresholds are fitted on
    them, and the teachers abstain by their own on questions without labels.

    Args:
        data: SQuAD 2.0 data to learn from.
        dev: SQuAD 2.0 data to measure on; nothing is learned from it, nor from texts that repeat it.
        more: Other data in SQuAD's format to learn from.
        documents: Passages that ``questions`` are asked of.
        questions: Questions without answers, which the student learns from its teacher alone.
        hold_out: Titles of articles of ``data`` that no model learns from: thresholds and temperatures are
            fitted on them.
        encoder: Encoder that the teacher starts from.
        start: Encoder or question-answering model that the student starts from; MiniLM-L6 of the
            ``quickstart`` extra when not given.
        copies: Augmented copies of each paragraph that the student learns from.
        checker: Question-answering model that reads the questions that are asked of another paragraph; those
            that it answers there are left out.
        baseline: Also teach the same student by labels alone, to compare with.
        exported: Run the teacher as a bf16 export, which is twice as fast on a CPU; needs the extra ``cpu``.
    """
    start = start or pretrained.default_encoder()
    gathered = GatherConfig(
        data=(data, *more),
        hold_out=hold_out,
        apart_from=(dev,),
        made_unanswerable=0.4,
        other_paragraph="most-similar",
        teacher=checker,
    )
    first_asked = replace(gathered, documents=documents, questions=questions)
    asked = replace(first_asked, made_unanswerable=0.2, rewritten=0.4, sentences_alone=0.15)
    rewritten = GatherConfig(
        data=(data,), hold_out=hold_out, apart_from=(dev,), rewritten=0.5, sentences_alone=0.1
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
        data="@first-logits",
        student=start,
        objective=("prediction",),
        # At 1, a teacher as sure as these would teach little more than its best answer.
        temperature=2.0,
        epochs=2,
        batch_size=16,
        learning_rate=1e-4,
        attention_dropout=0.0,
        precision="bf16",
        dev=dev,
        checkpoint_steps=400,
    )
    second_student = replace(
        first_student, data="@teacher-logits", student="@first-student/model", epochs=0.6, publish="best"
    )
    early = replace(
        teacher, data="@student-windows", student="@first-student/model", checkpoint_steps=400, dev=dev
    )
    late = replace(early, student="@second-student/model")
    # Labels alone cannot teach the questions without answers in "asked".
    labels_alone = replace(first_student, data="@gathered-windows", objective=("labels",), temperature=1.0)
    fitted = f"@gathered/{HELD_OUT}" if hold_out else None

    def evaluation(name: str, model: str) -> tuple[str, EvaluateConfig]:
        config = EvaluateConfig(model=model, data=dev, fit_threshold=fitted, fit_temperature=fitted)
        return f"{name}-evaluation", config

    def taught(name: str) -> tuple[str, Stages]:
        """What reads as the teacher, and its evaluation."""
        model = f"@{name}/model"
        if not exported:
            return model, (evaluation(name, model),)
        export = (f"{name}-export", ExportConfig(model=model, precision="bf16"))
        return f"@{name}-export", (export, evaluation(name, f"@{name}-export"))

    def logits(data: str, teacher: str, read: str) -> TeacherLogitsConfig:
        return TeacherLogitsConfig(
            data=data,
            tokenizer=start,
            teachers=(read,),
            abstain_at_threshold=bool(hold_out),
            settings=(f"@{teacher}-evaluation",) if hold_out else (),
        )

    first_read, first_taught = taught("first-teacher")
    read, second_taught = taught("teacher")
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
            *first_taught,
            ("first-asked", first_asked),
            ("first-logits", logits("@first-asked", "first-teacher", first_read)),
            ("first-student", first_student),
            ("rewritten", rewritten),
            ("rewritten-windows", TeacherLogitsConfig(data="@rewritten", tokenizer=encoder)),
            ("teacher", teacher),
            *second_taught,
            ("asked", asked),
            *(copied if copies else ()),
            ("teacher-logits", logits("@augmented" if copies else "@asked", "teacher", read)),
            *(compared if baseline else ()),
            ("second-student", second_student),
            ("student-windows", TeacherLogitsConfig(data="@rewritten", tokenizer=start)),
            ("early-student", early),
            ("late-student", replace(late, baseline="@baseline/model") if baseline else late),
            (
                "student",
                ExportConfig(
                    model="@late-student/model",
                    soup_with=("@early-student/model",),
                    format="safetensors",
                    precision="fp32",
                ),
            ),
            evaluation("student", "@student"),
            (
                "student-fp16",
                ExportConfig(
                    model="@student",
                    format="safetensors",
                    precision="fp16",
                    # Without articles held out, nothing is fitted, and the evaluation has no settings.
                    settings="@student-evaluation" if hold_out else None,
                    calibration=dev,
                ),
            ),
        ),
    )
