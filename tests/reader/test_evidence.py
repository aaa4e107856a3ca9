from __future__ import annotations

import math

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Evidence, Place, Reader
from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.evidence import gathered, gathered_from, shares
from tinyqa_ray.reader.ranks import same_answer
from tinyqa_ray.reader.spans import Reading, Span, sigmoid

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
SMALL = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=16)


@pytest.fixture(scope="module")
def reader(tiny_bert: str) -> Reader:
    return Reader.from_pretrained(tiny_bert, window=SMALL, device="cpu")


def place(answer: str, score: float, name: str = "a", start: int = 0) -> Place:
    return Place(
        document_id=name,
        answer=answer,
        score=score,
        start=start,
        end=start + len(answer),
        sentence=answer,
        sentence_start=start,
    )


groups = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), max_size=6)


@settings(deadline=None, max_examples=200)
@given(groups)
def test_shares_are_chances_that_add_up_to_at_most_one(scores: list[list[float]]) -> None:
    found = shares(scores)
    assert all(0 <= each <= 1 for each in found)
    assert math.fsum(found) <= 1 + 1e-9


@given(st.floats(0, 1))
def test_single_place_keeps_its_score(score: float) -> None:
    assert shares([[score]]) == [score]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=5), st.floats(0.01, 0.99))
def test_further_place_makes_an_answer_surer_and_its_rivals_less_sure(
    group: list[float], further: float
) -> None:
    before, rival = shares([group, [0.5]])
    after, rival_after = shares([[*group, further], [0.5]])
    assert after >= before
    assert rival_after <= rival


def test_equal_answers_are_one_with_its_places_best_first() -> None:
    places = [place("the Owl", 0.5, "a"), place("mouse", 0.6, "b"), place("owl.", 0.7, "c")]
    owl, mouse = gathered(places, na_prob=0.1, settings=ModelSettings())
    assert (owl.answer, owl.document_id, mouse.answer) == ("owl.", "c", "mouse")
    assert owl.places == (places[2], places[0])
    assert [owl.score, mouse.score] == pytest.approx(shares([[0.7, 0.5], [0.6]]))
    assert [each.answer for each in gathered(places, na_prob=0.1, settings=ModelSettings(), top_k=1)] == [
        "owl."
    ]


def test_no_answer_comes_first_above_the_threshold_with_the_chance_that_is_left() -> None:
    none, owl = gathered([place("owl", 0.3)], na_prob=0.6, settings=ModelSettings())
    assert (none.answer, none.places, none.na_prob) == (None, (), 0.6)
    assert none.score + owl.score == pytest.approx(1)
    (alone,) = gathered([], na_prob=1.0, settings=ModelSettings())
    assert (alone.answer, alone.score) == (None, 1.0)


def test_answers_below_the_least_score_are_left_out() -> None:
    places = [place("owl", 0.7), place("mouse", 0.2)]
    assert [
        each.answer for each in gathered(places, na_prob=0.1, settings=ModelSettings(), min_score=0.5)
    ] == ["owl"]
    (none,) = gathered(places, na_prob=0.1, settings=ModelSettings(), min_score=0.9)
    assert none.answer is None


def test_text_counts_only_with_spans_that_are_held_for_an_answer() -> None:
    sure = Reading((Span(0, 3, 9.0), Span(4, 9, 2.0)), 1.0)
    weak = Reading((Span(0, 3, -2.0),), 1.0)
    found = gathered_from([weak, sure, "too long"], ["elk", "owl mouse", ""], list("abc"), ModelSettings())
    owl, mouse, error = found
    assert [owl.answer, mouse.answer] == ["owl", "mouse"]
    assert [each.document_id for each in owl.places] == ["b"]
    assert owl.na_prob == sigmoid(-8.0)
    assert (error.error, error.document_id) == ("too long", "c")
    none, elk = gathered_from([weak], ["elk"], [None], ModelSettings())
    assert (none.answer, elk.answer, elk.places[0].score) == (None, "elk", sigmoid(-3.0))


def test_place_counts_from_the_whole_document() -> None:
    made = Place.of(Answer("owl", 0.5, 4, 7, 0.1, "d"), "It rained. The owl slept. So.", start=11, page=3)
    assert (made.start, made.end, made.answer, made.page) == (15, 18, "owl", 3)
    assert (made.sentence, made.sentence_start) == ("The owl slept.", 11)


@settings(deadline=None, max_examples=15)
@given(
    texts=st.lists(st.sampled_from([*CONTEXTS, "", "owl"]), min_size=1, max_size=4),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
    question=st.sampled_from(["Who built the lighthouse?", "What?"]),
)
def test_every_place_is_where_it_says_and_none_overlaps(
    reader: Reader, texts: list[str], threshold: float, question: str
) -> None:
    found = reader.evidence(question, texts, threshold=threshold)
    assert found
    spans = [each for each in found if each.answer is not None]
    assert math.fsum(each.score for each in found) == pytest.approx(1) or found[0].answer is not None
    assert [each.score for each in spans] == sorted((each.score for each in spans), reverse=True)
    taken: dict[str | None, list[Place]] = {}
    for each in spans:
        assert len({same_answer(place.answer) for place in each.places}) == 1
        assert [place.score for place in each.places] == sorted(
            (place.score for place in each.places), reverse=True
        )
        for place in each.places:
            text = texts[int(place.document_id or "")]
            assert text[place.start : place.end] == place.answer
            sentence = text[place.sentence_start : place.sentence_start + len(place.sentence)]
            assert sentence == place.sentence
            assert place.answer in place.sentence
            others = taken.setdefault(place.document_id, [])
            assert all(place.end <= other.start or other.end <= place.start for other in others)
            others.append(place)


def test_all_are_the_spans_that_pass_the_threshold_by_themselves(reader: Reader) -> None:
    question = "Who built the lighthouse?"
    (reading,) = reader.read([(question, CONTEXTS[0])], top_k=100)
    alone = [sigmoid(reading.null_score - span.score) for span in reading.spans]
    threshold = (alone[1] + alone[2]) / 2
    passing = [(span.start, span.end) for span in reading.spans[:2]]
    (found,) = reader.answer_many([(question, CONTEXTS[0])], top_k="all", threshold=threshold)
    assert sorted((each.start, each.end) for each in found if each.answer) == sorted(passing)
    (none,) = reader.answer_many([(question, CONTEXTS[0])], top_k="all", threshold=0.0)
    assert [each.answer for each in none] == [None]
    together = reader.answer(question, CONTEXTS, top_k="all", threshold=0.0)
    assert [each.answer for each in together] == [None]
    assert together[0].score == pytest.approx(1 - reader.answer(question, CONTEXTS, threshold=1.0)[0].score)


def test_least_score_leaves_weaker_answers_out(reader: Reader) -> None:
    every = reader.answer("Who built it?", CONTEXTS, top_k=5, threshold=1.0)
    least = every[1].score
    kept = reader.answer("Who built it?", CONTEXTS, top_k=5, threshold=1.0, min_score=least)
    assert kept == [each for each in every if each.score >= least]
    (none,) = reader.answer("Who built it?", CONTEXTS, threshold=1.0, min_score=1.0)
    assert none.answer is None


def test_options_out_of_range_are_refused(reader: Reader) -> None:
    for options in ({"top_k": "some"}, {"top_k": 0}, {"min_score": 1.5}):
        with pytest.raises(InputError):
            reader.evidence("Who?", "owl", **options)  # type: ignore[arg-type]


def test_texts_that_cannot_be_asked_come_last(reader: Reader) -> None:
    found = reader.evidence("Who?", ["owl", None], threshold=1.0)  # type: ignore[list-item]
    assert isinstance(found[-1], Evidence)
    assert found[-1].document_id == "1"
    assert "not a text" in str(found[-1].error)
