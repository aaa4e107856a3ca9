from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.ranks import chances, log_odds, rescored, same_answer

FITTED = ModelSettings(rank_temperatures=(0.5, 2.0), rank_shifts=(-0.5, 1.0))

lists = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), max_size=8).map(
    lambda rows: sorted(rows, key=lambda row: -row[0])
)
scales = st.lists(st.tuples(st.floats(0.05, 20), st.floats(-10, 10)), max_size=3).map(
    lambda rows: ModelSettings(
        rank_temperatures=tuple(row[0] for row in rows), rank_shifts=tuple(row[1] for row in rows)
    )
)


@settings(deadline=None, max_examples=200)
@given(rows=lists, fitted=scales)
def test_chances_of_different_answers_add_up_to_at_most_one_and_fall(
    rows: list[tuple[float, str]], fitted: ModelSettings
) -> None:
    found = chances([score for score, _ in rows], [answer for _, answer in rows], fitted)
    first: dict[str, float] = {}
    for (_, answer), chance in zip(rows, found, strict=True):
        first.setdefault(answer, chance)
    assert all(0 <= chance <= 1 for chance in found)
    assert math.fsum(first.values()) <= 1 + 1e-12
    assert sorted(first.values(), reverse=True) == list(first.values())


@settings(deadline=None, max_examples=100)
@given(rows=lists.filter(bool), fitted=scales)
def test_first_answer_and_its_equals_keep_their_scores(
    rows: list[tuple[float, str]], fitted: ModelSettings
) -> None:
    found = chances([score for score, _ in rows], [answer for _, answer in rows], fitted)
    for (score, answer), chance in zip(rows, found, strict=True):
        assert chance <= score + 1e-12 or fitted.rank_temperatures
        if answer == rows[0][1]:
            assert chance == score


def test_later_answer_is_right_if_no_better_one_is() -> None:
    found = chances([0.84, 0.59, 0.34], ["six hours", "two years", "1809"], ModelSettings())
    assert found == pytest.approx([0.84, 0.16 * 0.59, 0.16 * 0.41 * 0.34])


def test_scale_of_a_rank_corrects_its_log_odds_and_the_last_counts_for_all_later_ones() -> None:
    scores = [0.5, 0.4, 0.3, 0.2]
    plain = chances(scores, list("abcd"), ModelSettings())
    found = chances(scores, list("abcd"), FITTED)
    for rank, temperature, shift in ((1, 0.5, -0.5), (2, 2.0, 1.0), (3, 2.0, 1.0)):
        expected = 1 / (1 + math.exp(-(log_odds(plain[rank]) - shift) / temperature))
        left = 1 - math.fsum(found[:rank])
        assert found[rank] == pytest.approx(min(expected, found[rank - 1], left))


def test_equal_answers_do_not_compete() -> None:
    found = chances([0.9, 0.8, 0.5], ["owl", "owl", "mouse"], ModelSettings())
    assert found == pytest.approx([0.9, 0.8, 0.1 * 0.5])


def test_answers_are_equal_as_for_squad() -> None:
    assert same_answer("The Owl!") == same_answer("owl")
    assert same_answer("the") != same_answer("?") != ""


def test_answers_are_ranked_again_between_no_answer_and_errors() -> None:
    found = [
        Answer(None, 0.2, 0, 0, 0.3),
        Answer("owl", 0.8, 0, 3, 0.3, "a"),
        Answer("mouse", 0.7, 4, 9, 0.3, "a"),
        Answer("the owl", 0.6, 0, 7, 0.4, "b"),
        Answer(None, 0.0, 0, 0, 1.0, "c", error="empty"),
    ]
    made = rescored(found, ModelSettings())
    assert [each.answer for each in made] == [None, "owl", "the owl", "mouse", None]
    assert [each.score for each in made] == pytest.approx([0.2, 0.8, 0.6, 0.2 * 0.7, 0.0])
    assert made[-1].error == "empty"
    assert rescored(found[:2], FITTED) == found[:2]
    assert replace(made[3], score=0.7) == found[2]
