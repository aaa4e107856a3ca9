from __future__ import annotations

from tinyqa_ray.augment.page import augmentation_html
from tinyqa_ray.datasets import squad


def test_page_tells_questions_without_an_answer_from_those_that_nobody_answered() -> None:
    questions = (
        squad.Question("a", "Who?", False, (squad.GoldAnswer("cat", 2),)),
        squad.Question("b", "Where?", True, ()),
        squad.Question("c", "When?", False, ()),
    )
    original = squad.Paragraph(paragraph_id="T#0", title="T", context="A cat sat.", questions=questions)
    page = augmentation_html("Augmentation", [], [(original, original)])
    shown = [page.split(f"{question.question} <span class='tag'>")[1] for question in questions]
    assert [text.partition("</span>")[0] for text in shown] == ["cat", "no answer", "not labelled"]
