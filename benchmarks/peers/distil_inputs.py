"""What every contestant in distillation is given: the same data, teacher, student and settings."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill.students import evenly_spaced_layers, student_from_layers
from tinyqa_ray.evaluate import measure
from tinyqa_ray.models import pretrained

SETTINGS: dict[str, Any] = {
    "learning_rates": {"intermediate": 2e-4, "prediction": 1e-4},
    "warmup": 0.2,
    "temperature": 1.5,
    "distillation_weight": 0.75,
    "head_dropout": 0.1,  # the peer's, which cannot be chosen
}
_WINDOW = WindowConfig()
_QUESTION_TOKENS = 12
"""Median of SQuAD's questions."""
_SPECIAL_TOKENS = 3


def job(data: str, paragraphs: int, teacher: str, threads: int, folder: Path) -> dict[str, Any]:
    """Files that all contestants read, under ``folder``, and the settings that they share.

    Args:
        data: SQuAD data to train on.
        paragraphs: how many of them, spread over the articles.
        teacher: model folder.
        threads: of each contestant.
        folder: where data, and the student of every second layer of the teacher, are written.
    """
    network = pretrained.load_qa_model(teacher)
    depth = int(network.config.num_hidden_layers)
    student, train = folder / "student", folder / "train.json"
    student_from_layers(network, evenly_spaced_layers(depth, depth // 2)).save_pretrained(student)
    copy_tokenizer(teacher, str(student))
    # The peer learns the first answer too, but stacks all of them, which fails where their numbers differ.
    squad.write_json(map(_first_answers, _spread(data, paragraphs)), str(train))
    return {
        **SETTINGS,
        "workloads": {"train": []},
        "teacher": str(Path(teacher).expanduser().absolute()),
        "student": str(student),
        "data": str(train),
        "threads": threads,
        "max_seq_len": _WINDOW.max_seq_len,
        # The peer's doc_stride is the step; this one gives its windows our overlap at the median question.
        "step": _WINDOW.max_seq_len - _QUESTION_TOKENS - _SPECIAL_TOKENS - _WINDOW.doc_stride,
    }


def held_out(data: str, paragraphs: int, folder: Path) -> list[measure.Asked]:
    """The questions of some paragraphs, spread over the articles."""
    dev = str(folder / "dev.json")
    squad.write_json(_spread(data, paragraphs), dev)
    return measure.questions_of(dev)


def copy_tokenizer(model: str, folder: str) -> None:
    """The files as they are: what one transformers saves anew, an older one may not read."""
    for pattern in ("*token*", "vocab.*", "merges.txt"):
        for file in Path(model).expanduser().glob(pattern):
            shutil.copy(file, folder)


def _spread(data: str, count: int) -> list[squad.Paragraph]:
    paragraphs = squad.read_squad(data)
    return paragraphs[:: max(1, len(paragraphs) // count)][:count]


def _first_answers(paragraph: squad.Paragraph) -> squad.Paragraph:
    questions = (replace(question, answers=question.answers[:1]) for question in paragraph.questions)
    return replace(paragraph, questions=tuple(questions))
