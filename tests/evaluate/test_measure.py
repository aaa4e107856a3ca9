"""Questions of SQuAD data, and how sure and how right a reader's best spans are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.evaluate import measure
from tinyqa_ray.reader.spans import Reading, Span

CONTEXT = "Rye bread is baked at dawn."
DAWN = squad.GoldAnswer("at dawn", 19)


def asked(name: str, *answers: squad.GoldAnswer, is_impossible: bool = False) -> measure.Asked:
    return measure.Asked(squad.Question(name, "When?", is_impossible, answers), CONTEXT)


def paragraphs(folder: Path, *questions: measure.Asked) -> str:
    """A folder of one paragraph, in the form that may hold unlabelled questions."""
    paragraph = squad.Paragraph(
        paragraph_id="p",
        title="Rye",
        context=CONTEXT,
        questions=tuple(each.question for each in questions),
        source_id="p",
    )
    pq.write_table(squad.to_table([paragraph]), folder / "paragraphs.parquet")
    return str(folder)


def test_questions_that_nobody_answered_are_not_measured(tmp_path: Path) -> None:
    answered, impossible = asked("answered", DAWN), asked("impossible", is_impossible=True)
    data = paragraphs(tmp_path, answered, asked("unlabelled"), impossible)
    assert measure.questions_of(data) == [answered, impossible]
    with pytest.raises(InputError, match="holds no questions that are answered or said to be unanswerable"):
        measure.questions_of(paragraphs(tmp_path, asked("unlabelled")))


def test_margins_are_of_best_spans_and_right_where_an_answer_is() -> None:
    dawn, more, bread = Span(19, 26, 3.0), Span(13, 26, 1.0), Span(4, 9, 0.5)
    questions = [
        *(asked("exact", DAWN), asked("overlap", DAWN), asked("wrong", DAWN)),
        *(asked("impossible", is_impossible=True), asked("spanless", is_impossible=True)),
    ]
    found = [
        *(Reading((dawn, more), 1.0), Reading((more,), 4.0), Reading((bread,), -1.0)),
        *(Reading((dawn,), 2.5), Reading((), 0.0)),
    ]
    margins, right = measure.Scored.of(questions, found).margins()
    np.testing.assert_allclose(margins, [2.0, -3.0, 1.5, 0.5])
    # Two of the three words of "baked at dawn" are all of "at dawn".
    np.testing.assert_allclose(right, [1.0, 0.8, 0.0, 0.0])
