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

_TEACHERS = ("teacher-a", "teacher-b")


def mini(
    data: str = "rajpurkar/squad_v2:train",
    dev: str = "rajpurkar/squad_v2:validation",
    more: tuple[str, ...] = (),
    documents: str | None = None,
    questions: str | None = None,
    hold_out: tuple[str, ...] = (),
    encoder: str | None = None,
    copies: int = 0,
    baseline: bool = False,
    exported: bool = False,
) -> Recipe:
    """A 6 x 384 student of two teachers of its own size: it learns their mean, and runs at half their cost.

    The teachers are the same encoder, taught by labels with two seeds. The student starts from the mean of
    their weights and learns the mean of their logits, also on questions without answers. If articles are held
    out, the teachers abstain on questions without answers by the thresholds that are fitted on them.

    Args:
        data: SQuAD 2.0 data to learn from.
        dev: SQuAD 2.0 data to measure on; nothing is learned from it.
        more: Other data in SQuAD's format, which the teachers learn from as well.
        documents: Passages that ``questions`` are asked of.
        questions: Questions without answers, which the student learns from its teachers alone.
        hold_out: Titles of articles of ``data`` that no model learns from: thresholds and temperatures are
            fitted on them.
        encoder: Encoder that all models start from; MiniLM-L6 of the ``quickstart`` extra when not given.
        copies: Augmented copies of each paragraph that the student learns from.
        baseline: Also teach the same student by labels alone, to compare with.
        exported: Run the teachers as bf16 exports, which are twice as fast on a CPU; needs the extra ``cpu``.
    """
    start = encoder or pretrained.default_encoder()
    gathered = GatherConfig(
        data=(data, *more), hold_out=hold_out, questions_per_paragraph=40, made_unanswerable=0.25
    )
    # The student learns from data like that on which it is measured, and from questions without answers.
    asked = replace(gathered, data=(data,), documents=documents, questions=questions)
    taught = DistillConfig(
        data="@windows",
        student=start,
        objective=("labels",),
        epochs=2,
        batch_size=16,
        learning_rate=1.5e-4,
        attention_dropout=0.0,
        precision="bf16",
        dev=dev,
        checkpoint_steps=500,
    )
    teachers: Stages = tuple((name, replace(taught, seed=seed)) for seed, name in enumerate(_TEACHERS, 1))
    student = DistillConfig(
        data="@teacher-logits",
        student=f"@{_TEACHERS[0]}/model",
        soup_with=tuple(f"@{name}/model" for name in _TEACHERS[1:]),
        objective=("prediction",),
        # At 1, teachers as sure as these would teach little more than their best answer.
        temperature=2.0,
        epochs=3,
        batch_size=16,
        learning_rate=1e-4,
        attention_dropout=0.0,
        precision="bf16",
        dev=dev,
        checkpoint_steps=500,
    )
    # Labels alone cannot teach the questions without answers in "asked".
    labels_alone = replace(student, data="@windows", objective=("labels",), temperature=1.0)
    fitted = f"@gathered/{HELD_OUT}" if hold_out else None

    def evaluation(name: str) -> tuple[str, EvaluateConfig]:
        config = EvaluateConfig(
            model=f"@{name}/model", data=dev, fit_threshold=fitted, fit_temperature=fitted
        )
        return f"{name}-evaluation", config

    exports: Stages = tuple(
        (f"{name}-export", ExportConfig(model=f"@{name}/model", precision="bf16")) for name in _TEACHERS
    )
    thresholds = tuple(f"@{name}-evaluation" for name in _TEACHERS) if hold_out else ()
    copied: Stages = (("augmented", AugmentConfig(data="@asked", embeddings=start, copies=copies)),)
    return Recipe(
        name="mini",
        stages=(
            ("gathered", gathered),
            ("windows", TeacherLogitsConfig(data="@gathered", tokenizer=start)),
            *teachers,
            *map(evaluation, _TEACHERS),
            ("asked", asked),
            *(copied if copies else ()),
            *(exports if exported else ()),
            (
                "teacher-logits",
                TeacherLogitsConfig(
                    data="@augmented" if copies else "@asked",
                    teachers=tuple(f"@{name}-export" if exported else f"@{name}/model" for name in _TEACHERS),
                    abstain_at_threshold=bool(hold_out),
                    settings=thresholds,
                ),
            ),
            *((("baseline", labels_alone),) if baseline else ()),
            ("student", replace(student, baseline="@baseline/model") if baseline else student),
            (
                "teachers-evaluation",
                EvaluateConfig(
                    model=f"@{_TEACHERS[0]}/model",
                    ensemble_with=tuple(f"@{name}/model" for name in _TEACHERS[1:]),
                    data=dev,
                    fit_threshold=fitted,
                    fit_temperature=fitted,
                ),
            ),
            *map(evaluation, ("baseline", "student") if baseline else ("student",)),
        ),
    )
