"""Questions asked of single sentences of their paragraph, since people's texts are often short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.datasets.sentences import sentence_around, sentences
from tinyqa_ray.datasets.squad import GoldAnswer, Paragraph, Question
from tinyqa_ray.gather.unanswerable import holds_answer

ALONE = "-alone"
"""Ending of the id of a question that is asked of the sentence with its answer."""
ASIDE = "-aside"
"""Ending of the id of a question that is asked of another sentence of its paragraph."""


def of_single_sentences(paragraphs: Sequence[Paragraph], share: float, seed: int) -> Iterator[Paragraph]:
    """Ask questions of the sentence with their answer, and of another sentence, which does not hold it.

    Args:
        paragraphs: paragraphs with questions.
        share: part of the answerable questions that are asked so, at most 1.
        seed: seed of the choice of questions and sentences.

    Yields:
        a paragraph for each sentence that is asked something, with a paragraph_id and source_id of its own.
        Questions have new ids; an answer stands where it stands in the sentence.
    """
    rng = np.random.default_rng(seed)
    analyzer = Analyzer("english")
    for own in paragraphs:
        asked: dict[tuple[int, int], list[Question]] = {}
        spans = sentences(own.context)
        for question in own.questions:
            if not question.answers or rng.random() >= share:
                continue
            first = question.answers[0]
            begin, end = sentence_around(
                own.context, first.answer_start, first.answer_start + len(first.text)
            )
            if (begin, end) == (0, len(own.context)):
                continue
            asked.setdefault((begin, end), []).append(_within(question, begin, end))
            others = [
                span for span in spans if not holds_answer(own.context[slice(*span)], question, analyzer)
            ]
            if others:
                moved = Question(question.id + ASIDE, question.question, True, ())
                asked.setdefault(others[rng.integers(len(others))], []).append(moved)
        for number, ((begin, end), some) in enumerate(sorted(asked.items())):
            name = f"{own.paragraph_id}{ALONE}{number}"
            context = own.context[begin:end]
            yield replace(own, paragraph_id=name, source_id=name, context=context, questions=tuple(some))


def _within(question: Question, begin: int, end: int) -> Question:
    """The question with the answers that stand in the characters [begin, end), counted from there."""
    answers = tuple(
        GoldAnswer(answer.text, answer.answer_start - begin)
        for answer in question.answers
        if begin <= answer.answer_start and answer.answer_start + len(answer.text) <= end
    )
    return replace(question, id=question.id + ALONE, answers=answers)
