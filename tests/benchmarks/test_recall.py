from __future__ import annotations

import pytest
from peers.recall import coverage

from tinyqa_ray.configs import CandidateConfig
from tinyqa_ray.datasets.squad import GoldAnswer, Paragraph, Question


def paragraph(name: str, context: str, *asked: tuple[str, str]) -> Paragraph:
    questions = tuple(
        Question(f"{name}{i}", question, not answer, (GoldAnswer(answer, 0),) if answer else ())
        for i, (question, answer) in enumerate(asked)
    )
    return Paragraph(paragraph_id=name, title="", context=context, questions=questions)


PARAGRAPHS = [
    paragraph("a", "Rollo was a duke of Normans.", ("Which duke led Normans?", "Rollo"), ("Rollo?", "")),
    # Of its two words, "duke" stands in shorter passages, which come first.
    paragraph("b", "A long passage on the dukes. " + "And on. " * 30, ("Which duke?", "rollo")),
    paragraph("c", "Rivers flow.", ("Who is zyzzyva?", "Rivers")),
]


def test_recall_counts_own_paragraph_and_answer_text() -> None:
    found = coverage(PARAGRAPHS, CandidateConfig(), at=(1, 2))
    assert (found.questions, found.answerable, found.passages) == (4, 3, 3)
    first, second = found.recalls
    # The second best passage of "Which duke?" is its own; the best already holds the answer.
    assert (first.own, second.own) == (2 / 4, 3 / 4)
    assert first.answer == second.answer == 2 / 3
    # One passage each for three questions and none for the last; two for two of them.
    assert first.saved == pytest.approx(1 - 3 / 12)
    assert second.saved == pytest.approx(1 - 5 / 12)


def test_part_of_the_own_paragraph_counts_but_answers_must_be_in_it() -> None:
    context = " ".join(["duke"] * 10 + [f"filler{i}" for i in range(10)] + ["Rollo"])
    config = CandidateConfig(passage_words=10, passage_overlap=0, language=None)
    found = coverage([paragraph("a", context, ("duke", "Rollo"))], config, at=(1, 3))
    assert found.passages == 3
    assert [recall.own for recall in found.recalls] == [1, 1]
    assert [recall.answer for recall in found.recalls] == [0, 0]


def test_coverage_prints_a_table() -> None:
    lines = str(coverage(PARAGRAPHS, CandidateConfig(), at=(1, 10))).splitlines()
    assert lines[0] == "4 questions, 3 with answers; 3 passages"
    assert lines[2].split() == ["1", "50.0%", "66.7%", "75.0%"]


def test_data_without_questions_has_no_recall() -> None:
    found = coverage([paragraph("a", "Rivers flow.")], CandidateConfig(), at=(1,))
    assert (found.questions, found.recalls[0].own, found.recalls[0].answer) == (0, 0.0, 0.0)
