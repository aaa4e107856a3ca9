from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.datasets.squad import GoldAnswer, Paragraph, Question
from tinyqa_ray.gather.alone import ALONE, ASIDE, of_single_sentences

SENTENCES = ("Owls hunt at night.", "Rye is baked at dawn.", "Nobody saw it.", "At night all is dark.")


def paragraph(sentences: list[str], asked: list[int]) -> Paragraph:
    """Questions whose answers are the last words of sentences."""
    context = " ".join(sentences)
    questions = []
    for n, place in enumerate(asked):
        end = len(" ".join(sentences[: place % len(sentences) + 1])) - 1
        answer = context[end - 5 : end]
        questions.append(Question(f"q{n}", "When?", False, (GoldAnswer(answer, end - 5),)))
    return Paragraph(
        paragraph_id="p",
        title="t",
        context=context,
        questions=(*questions, Question("none", "Why?", True, ())),
    )


@settings(deadline=None)
@given(
    sentences=st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 9), max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_sentences_hold_the_answers_or_none_of_them(
    sentences: list[str], asked: list[int], share: float, seed: int
) -> None:
    own = paragraph(sentences, asked)
    gold = {each.id: [answer.text for answer in each.answers] for each in own.questions}
    made = list(of_single_sentences([own], share, seed))
    assert len({each.paragraph_id for each in made}) == len(made)
    ids = [question.id for each in made for question in each.questions]
    assert len(set(ids)) == len(ids)
    for each in made:
        assert each.context in SENTENCES
        assert each.paragraph_id == each.source_id
        for question in each.questions:
            if question.id.endswith(ASIDE):
                assert question.is_impossible
                assert not question.answers
                assert not any(text in each.context for text in gold[question.id.removesuffix(ASIDE)])
            else:
                assert question.id.endswith(ALONE)
                assert [answer.text for answer in question.answers] == gold[question.id.removesuffix(ALONE)]
                for answer in question.answers:
                    assert each.context[answer.answer_start :].startswith(answer.text)


def test_every_answerable_question_is_asked_if_all_shall_be() -> None:
    own = paragraph(list(SENTENCES[:2]), [0, 1])
    made = list(of_single_sentences([own], 1.0, 0))
    assert [each.context for each in made] == list(SENTENCES[:2])
    assert [{question.id for question in each.questions} for each in made] == [
        {"q0-alone", "q1-aside"},
        {"q0-aside", "q1-alone"},
    ]


def test_a_paragraph_of_one_sentence_is_left_as_it_is() -> None:
    assert not list(of_single_sentences([paragraph([SENTENCES[0]], [0])], 1.0, 0))
