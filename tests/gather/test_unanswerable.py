from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.datasets.squad import GoldAnswer, Paragraph, Question
from tinyqa_ray.gather.unanswerable import of_most_similar, of_same_article

TEXTS = ("owl", "rye bread", "dawn", "Owl post", "nothing here")
MAKERS = {"same-article": of_same_article, "most-similar": of_most_similar}


def paragraph(number: int, title: str, context: str, *questions: Question) -> Paragraph:
    return Paragraph(paragraph_id=str(number), title=title, context=context, questions=questions)


def question(name: str, text: str, answer: str, start: int = 0) -> Question:
    return Question(name, text, False, (GoldAnswer(answer, start),))


@pytest.mark.parametrize("maker", MAKERS)
@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from("AB"), st.sampled_from(TEXTS), st.lists(st.booleans(), max_size=3)),
        max_size=8,
    ),
    share=st.floats(0, 2.5),
    seed=st.integers(0, 9),
)
def test_made_questions_are_of_another_paragraph_that_holds_no_answer(
    maker: str, rows: list[tuple[str, str, list[bool]]], share: float, seed: int
) -> None:
    paragraphs = [
        Paragraph(
            paragraph_id=str(n),
            title=title,
            context=text,
            questions=tuple(
                Question(
                    f"{n}-{i}",
                    "Is it owl, bread or dawn?",
                    not answerable,
                    (GoldAnswer(text[:3], 0),) if answerable else (),
                )
                for i, answerable in enumerate(asked)
            ),
        )
        for n, (title, text, asked) in enumerate(rows)
    ]
    by_id = {each.paragraph_id: each for each in paragraphs}
    asked = {question.id: question for each in paragraphs for question in each.questions}
    made = list(MAKERS[maker](paragraphs, share, seed))
    for place, moved in made:
        origin = moved.id.split("-elsewhere")[0]
        own = by_id[origin.split("-")[0]]
        if maker == "same-article":
            assert by_id[place].title == own.title
        assert by_id[place].context != own.context
        assert own.context[:3].lower() not in by_id[place].context.lower()
        assert not asked[origin].is_impossible
        assert moved.is_impossible
    assert len({moved.id for _, moved in made}) == len(made)
    times = Counter(moved.id.split("-elsewhere")[0] for _, moved in made)
    assert max(times.values(), default=0) <= int(share) + 1
    assert made == list(MAKERS[maker](paragraphs, share, seed))


def test_most_similar_paragraph_is_that_which_shares_the_rarest_words_with_the_question() -> None:
    paragraphs = [
        paragraph(
            0, "A", "Barn owls hunt voles at night.", question("q", "What do barn owls hunt?", "voles", 16)
        ),
        paragraph(1, "A", "Rye bread is baked at dawn."),
        paragraph(2, "B", "Barn owls nest in church towers."),
        paragraph(3, "C", "Eagle owls eat hares."),
    ]
    ((place, moved),) = of_most_similar(paragraphs, 1.0, 0)
    assert (place, moved.question, moved.is_impossible) == ("2", "What do barn owls hunt?", True)
    assert [place for place, _ in of_most_similar(paragraphs, 2.0, 0)] == ["2", "3"]


def test_paragraph_that_writes_the_answer_with_other_spaces_or_marks_is_not_taken() -> None:
    own = paragraph(0, "A", "It sold 1,000 copies.", question("q", "How many copies were sold?", "1,000", 8))
    rejoined = paragraph(1, "B", "It sold 1 , 000 copies , they say .")
    other = paragraph(2, "B", "Copies were sold in Rome.")
    assert [place for place, _ in of_most_similar([own, rejoined, other], 1.0, 0)] == ["2"]


def test_answer_of_marks_alone_is_looked_for_as_it_is() -> None:
    own = paragraph(0, "A", "The sign is %.", question("q", "Which sign is it?", "%", 12))
    holds = paragraph(1, "A", "A sign like % is a sign.")
    other = paragraph(2, "A", "A sign like & is a sign.")
    for maker in MAKERS.values():
        assert {place for place, _ in maker([own, holds, other], 2.0, 0)} == {"2"}


def test_similar_paragraph_that_has_half_of_the_answers_words_is_not_taken() -> None:
    own = paragraph(
        0,
        "A",
        "Altman is played by Kimberly Raver.",
        question("q", "Who played Altman?", "Kimberly Raver", 20),
    )
    other_words = paragraph(1, "B", "Altman, played by Kim Raver, was a surgeon.")
    other = paragraph(2, "B", "Altman was a surgeon.")
    assert [place for place, _ in of_most_similar([own, other_words, other], 1.0, 0)] == ["2"]
