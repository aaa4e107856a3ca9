"""Recipes of published models: each is a function that returns the frozen configs of a whole job.

The functions take data and models; other values are changed by overrides, in one stage or in all
(``tinyqa distill --recipe NAME --help``). Only stages that teach the head are measured on ``dev``, since the
head is random before them. All recipes by name are in ``registry.py``.
"""

from __future__ import annotations

from tinyqa_ray.configs import AugmentConfig, DistillConfig, EvaluateConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.recipes.recipe import Recipe, Stages, with_baseline


def tinyroberta(
    data: str = "rajpurkar/squad_v2:train",
    dev: str = "rajpurkar/squad_v2:validation",
    student: str = "deepset/tinyroberta-6l-768d",
    student_layers: tuple[int, ...] | None = None,
    teacher: str = "deepset/roberta-base-squad2",
    large_teacher: str = "deepset/roberta-large-squad2",
    masked_lm: str | None = "FacebookAI/roberta-base",
    general: str | None = None,
    general_teacher: str = "FacebookAI/roberta-base",
    baseline: bool = False,
) -> Recipe:
    """``deepset/tinyroberta-squad2``: 6 x 768 RoBERTa; published EM 78.69, F1 81.92 on SQuAD 2.0 dev.

    The published student that it starts from has been through stage 0 (general distillation). Numbers of
    stage 2 are the model card's; those of stage 1, which the card does not give, are our choice.
    ``docs/fidelity.md`` has all of them beside the card's and Haystack's, with the reasons.

    Args:
        data: SQuAD 2.0 data to learn from.
        dev: SQuAD 2.0 data to measure on.
        student: Folder or hub id of the encoder that the student starts from.
        student_layers: Layers of the student to keep, from 0; all when not given.
        teacher: Question-answering model whose layers are taught.
        large_teacher: Question-answering model whose predictions are taught.
        masked_lm: Model that proposes words for the copies; with 'none', neighbours in the student's input
            embeddings do.
        general: Plain text files for general distillation, which then comes first.
        general_teacher: Encoder whose layers are taught in general distillation.
        baseline: Also teach the same student by labels alone, to compare with.
    """
    start, layers, general_stages = _general(general, student, student_layers, general_teacher, workers=4)
    taught = DistillConfig(
        data="@teacher-logits",
        student="@intermediate/model",
        objective=("prediction",),
        distillation_weight=0.75,
        temperature=1.5,
        batch_size=96,
        epochs=4,
        learning_rate=3e-5,
        warmup_ratio=0.2,
        head_dropout=0.1,  # as Haystack gives to every model that it converts
        dev=dev,
        checkpoint_steps=500,
        workers=4,
        use_gpu=True,
    )
    return Recipe(
        name="tinyroberta",
        stages=(
            *general_stages,
            # The masked LM is cased, as the student is; words that it splits use its own embeddings.
            ("augmented", _copies(data, masked_lm, student)),
            ("windows", TeacherLogitsConfig(data="@augmented", tokenizer=student, actors=16)),
            (
                "intermediate",
                DistillConfig(
                    data="@windows",
                    student=start,
                    student_layers=layers,
                    teacher=teacher,
                    objective=("intermediate",),
                    batch_size=96,  # our choice, like the four below
                    epochs=2,
                    learning_rate=5e-5,
                    warmup_ratio=0.2,
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
                    teachers=(large_teacher,),
                    max_batch_tokens=32768,
                    actors=4,
                    num_gpus=1.0,
                ),
            ),
            *with_baseline(taught, start, layers, baseline),
            ("evaluation", EvaluateConfig(model="@student/model", data=dev)),
        ),
    )


def tinybert(
    data: str = "rajpurkar/squad_v2:train",
    dev: str = "rajpurkar/squad_v2:validation",
    student: str = "huawei-noah/TinyBERT_General_6L_768D",
    student_layers: tuple[int, ...] | None = None,
    teacher: str = "deepset/bert-base-uncased-squad2",
    masked_lm: str | None = "google-bert/bert-base-uncased",
    general: str | None = None,
    general_teacher: str = "google-bert/bert-base-uncased",
    baseline: bool = False,
) -> Recipe:
    """``deepset/tinybert-6l-768d-squad2``: published EM 71.88, F1 76.36 on SQuAD 2.0 dev.

    It starts from the published general student and has two stages with the numbers of the model card; what
    the card does not give (the warm-up) is Haystack's. ``docs/fidelity.md`` has all of them beside the card's
    and Haystack's, with the reasons. The general student has pickled weights: see ``tinyqa convert``.

    Args:
        data: SQuAD 2.0 data to learn from.
        dev: SQuAD 2.0 data to measure on.
        student: Folder or hub id of the encoder that the student starts from.
        student_layers: Layers of the student to keep, from 0; all when not given.
        teacher: Question-answering model whose layers and predictions are taught.
        masked_lm: Model that proposes words for the copies; with 'none', neighbours in the student's input
            embeddings do.
        general: Plain text files for general distillation, which then comes first.
        general_teacher: Encoder whose layers are taught in general distillation.
        baseline: Also teach the same student by labels alone, to compare with.
    """
    start, layers, general_stages = _general(general, student, student_layers, general_teacher, workers=1)
    taught = DistillConfig(
        data="@teacher-logits",
        student="@intermediate/model",
        objective=("prediction",),
        distillation_weight=1.0,
        temperature=1.0,
        batch_size=26,
        epochs=5,
        learning_rate=3e-5,
        warmup_ratio=0.2,
        head_dropout=0.1,
        dev=dev,
        checkpoint_steps=2000,
        use_gpu=True,
    )
    return Recipe(
        name="tinybert",
        stages=(
            *general_stages,
            ("augmented", _copies(data, masked_lm, student)),
            ("windows", TeacherLogitsConfig(data="@augmented", tokenizer=student, actors=16)),
            (
                "intermediate",
                DistillConfig(
                    data="@windows",
                    student=start,
                    student_layers=layers,
                    teacher=teacher,
                    objective=("intermediate",),
                    batch_size=26,
                    epochs=5,
                    learning_rate=5e-5,
                    warmup_ratio=0.2,  # Haystack's default
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
                    teachers=(teacher,),
                    max_batch_tokens=32768,
                    num_gpus=1.0,
                ),
            ),
            *with_baseline(taught, start, layers, baseline),
            ("evaluation", EvaluateConfig(model="@student/model", data=dev)),
        ),
    )


def _copies(data: str, masked_lm: str | None, student: str) -> AugmentConfig:
    """Twenty copies of each paragraph; without a masked LM, words come from the student's embeddings.

    Their numbers are those of Haystack 1's function (its command line draws from 5 words).
    """
    alone = masked_lm is None or masked_lm == "none"
    return AugmentConfig(
        data=data,
        masked_lm=masked_lm,
        embeddings=student if alone else None,
        copies=20,
        candidates=20,
        actors=4,
        num_gpus=1,
    )


def _general(
    texts: str | None, student: str, layers: tuple[int, ...] | None, teacher: str, workers: int
) -> tuple[str, tuple[int, ...] | None, Stages]:
    """Stage 0, general distillation, if there are ``texts``.

    Returns:
        the model that the student of the next stage starts from, its layers to keep, and the stages to run
        first.
    """
    if texts is None:
        return student, layers, ()
    # As for TinyBERT (arXiv 1909.10351), 3 epochs of plain text at 128 tokens; other numbers are our choice.
    windows = TeacherLogitsConfig(
        data=texts, tokenizer=student, window=WindowConfig(max_seq_len=128, doc_stride=0), actors=16
    )
    taught = DistillConfig(
        data="@general-windows",
        student=student,
        student_layers=layers,
        teacher=teacher,
        objective=("intermediate",),
        batch_size=256,
        epochs=3,
        learning_rate=5e-5,
        checkpoint_steps=2000,
        workers=workers,
        use_gpu=True,
    )
    return "@general/model", None, (("general-windows", windows), ("general", taught))
