from __future__ import annotations

import difflib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.datasets.squad import GoldAnswer, Paragraph, Question
from tinyqa_ray.gather.rewritten import REWRITTEN, rewritten

WORDS = (
    "Who",
    "was",
    "elected",
    "first",
    "Ann Lee",
    "Bob Ray",
    "in",
    "1998",
    "North",
    "largest",
    "did",
    "how",
)


def paragraph(name: str, context: str, *asked: tuple[str, str]) -> Paragraph:
    questions = tuple(
        Question(
            f"{name}-{n}", text, not answer, (GoldAnswer(answer, context.index(answer)),) if answer else ()
        )
        for n, (text, answer) in enumerate(asked)
    )
    return Paragraph(paragraph_id=name, title="t", context=context, questions=questions)


def texts(paragraphs: list[Paragraph], seeds: int = 40) -> set[str]:
    """All that the questions become with several seeds."""
    return {made.question for seed in range(seeds) for _, made in rewritten(paragraphs, 1.0, seed)}


@settings(deadline=None)
@given(
    asked=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), max_size=4),
    context=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_one_thing_is_changed_and_no_answer_is_left(
    asked: list[list[str]], context: list[str], share: float, seed: int
) -> None:
    text = " ".join(context)
    own = paragraph("p", text, *((" ".join(each), context[0]) for each in asked))
    other = paragraph("o", "We met Cyd Poe.")
    before = {each.id: each.question for each in own.questions}
    made = list(rewritten([own, other], share, seed))
    assert made == list(rewritten([own, other], share, seed))
    assert len({each.id for _, each in made}) == len(made) <= (len(asked) if share else 0)
    for place, question in made:
        assert place == "p"
        assert question.is_impossible
        assert not question.answers
        origin = before[question.id.removesuffix(REWRITTEN)]
        assert question.question != origin
        changes = difflib.SequenceMatcher(None, origin.split(), question.question.split()).get_opcodes()
        places = [(i, j) for tag, i, j, *_ in changes if tag != "equal"]
        assert places
        # a name of two words at most, or a "not" beside its verb
        assert max(j for _, j in places) - min(i for i, _ in places) <= 2


def test_a_name_becomes_one_of_the_paragraph_or_of_another() -> None:
    own = paragraph("p", "There was Ann Lee with Bob Ray, by NASA.", ("Where has seen Ann Lee?", "NASA"))
    other = paragraph("o", "There sings Cyd Poe.")
    assert texts([own, other]) >= {"Where has seen Bob Ray?", "Where has seen Cyd Poe?"}


def test_an_answer_is_never_put_into_its_question() -> None:
    own = paragraph("p", "There was Ann Lee with Bob Ray.", ("Whom seeing Ann Lee?", "Bob Ray"))
    assert texts([own]) == set()


def test_a_number_becomes_one_that_the_paragraph_does_not_have() -> None:
    context = "The hall of 1998 holds 1,200 people, that of 1997 fewer."
    made = texts([paragraph("p", context, ("Which hall of 1998?", "hall"))])
    assert made
    assert not {"Which hall of 1998?", "Which hall of 1997?"} & made
    assert all(each.startswith("Which hall of 19") and each[-5:-1].isdigit() for each in made)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("The largest city?", "The smallest city?"),
        ("Before the war?", "After the war?"),
        ("How many cities?", None),
        ("Seen how long ago?", None),
    ],
)
def test_a_word_becomes_its_opposite(question: str, expected: str | None) -> None:
    made = texts([paragraph("p", "A city there.", (question, "city"))])
    assert expected in made if expected else not made


def test_a_verb_is_denied_once() -> None:
    made = texts([paragraph("p", "Owls hunt.", ("What do owls?", "hunt"), ("What don't owls?", "hunt"))], 99)
    assert made == {"What don't owls?", "What do not owls?"}


def test_questions_without_answers_stay_as_they_are() -> None:
    assert not list(rewritten([paragraph("p", "In 1998.", ("The first of 1998?", ""))], 1.0, 0))
