from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.augment.rewriting import (
    STOP_WORDS,
    Span,
    Words,
    copies,
    replaceable,
    rewrite,
    take_case,
    word_spans,
)
from tinyqa_ray.core.errors import InputError

CANDIDATES = ["river", "Oslo", "NASA", "iPod", "straße", "e\u0301cole", "नमस्ते", "\u0131t", "it", "東京"]
ENGLISH = ["The", "of", "IT", "old", "Norman", "DUKES", "iPhone", "don't", "'tis", "well-known"]
OTHER = [
    "B2B",
    "1066",
    "x_y",
    "École",
    "e\u0301te\u0301",
    "Beyonce\u0301\u2019s",
    "हिन्दी",
    "❤\ufe0flove",
    "東京都",
    "ﬁn",
]
BETWEEN = [" ", "  ", "\n", "\u00a0", ". ", ", ", "-", "'", "\u0301", "\u2019", "(", ")", "😀"]
pieces = st.one_of(st.sampled_from(ENGLISH + OTHER + BETWEEN), st.text(max_size=4))
texts = st.lists(pieces, max_size=30).map("".join)


@st.composite
def paragraphs(draw: st.DrawFn) -> tuple[str, list[Span], list[list[str]]]:
    context = draw(texts)
    place = st.integers(0, len(context))
    keep = draw(st.lists(st.tuples(place, place).map(lambda pair: (min(pair), max(pair))), max_size=3))
    offered = st.lists(st.sampled_from(CANDIDATES), max_size=4)
    n_words = len(word_spans(context))
    return context, keep, draw(st.lists(offered, min_size=n_words, max_size=n_words))


def words_of(context: str) -> list[str]:
    return [context[start:end] for start, end in word_spans(context)]


def around_words(context: str) -> list[str]:
    """The text before, between and after the words."""
    edges = [0, *(edge for span in word_spans(context) for edge in span), len(context)]
    return [context[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def always(context: str, candidates: list[list[str]], keep: list[Span] | None = None) -> str:
    return rewrite(Words.of(context, keep or []), candidates, np.random.default_rng(0), 1.0).context


def same_for_all(context: str, *offered: str) -> list[list[str]]:
    return [list(offered) for _ in word_spans(context)]


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("The old town.", ["The", "old", "town"]),
        ("don't Beyoncé\u2019s 'quoted' dogs'", ["don't", "Beyoncé\u2019s", "quoted", "dogs"]),
        ("well-known north\u2013south", ["well", "known", "north", "south"]),
        ("B2B 1990s x86 1,000th 1990's snake_case ½cup x²", []),
        ("e\u0301te\u0301 हिन्दी Ελλάδα", ["e\u0301te\u0301", "हिन्दी", "Ελλάδα"]),
        ("❤\ufe0flove 😀", ["love"]),
        ("", []),
    ],
)
def test_words_are_letters_with_marks_and_inner_apostrophes(context: str, words: list[str]) -> None:
    assert words_of(context) == words


@given(texts)
@settings(deadline=None)
def test_words_come_in_order_apart_and_hold_no_digit(context: str) -> None:
    spans = word_spans(context)
    edges = [edge for span in spans for edge in span]
    assert edges == sorted(set(edges))
    assert not any(character.isnumeric() for word in words_of(context) for character in word)


@given(paragraphs(), st.integers(0, 99), st.floats(0, 1))
@settings(deadline=None, max_examples=300)
def test_every_kept_span_survives_at_its_new_start(
    paragraph: tuple[str, list[Span], list[list[str]]], seed: int, probability: float
) -> None:
    context, keep, candidates = paragraph
    rewriting = rewrite(Words.of(context, keep), candidates, np.random.default_rng(seed), probability)
    assert len(rewriting.starts) == len(keep)
    for start, (old_start, old_end) in zip(rewriting.starts, keep, strict=True):
        assert 0 <= start <= len(rewriting.context)
        assert rewriting.context[start : start + old_end - old_start] == context[old_start:old_end]


@given(paragraphs(), st.integers(0, 99))
@settings(deadline=None, max_examples=300)
def test_only_words_that_may_change_change(
    paragraph: tuple[str, list[Span], list[list[str]]], seed: int
) -> None:
    context, keep, candidates = paragraph
    rewriting = rewrite(Words.of(context, keep), candidates, np.random.default_rng(seed), 0.5)
    assert around_words(rewriting.context) == around_words(context)
    may_change = replaceable(context, word_spans(context), keep)
    before, after = words_of(context), words_of(rewriting.context)
    changed = [old != new for old, new in zip(before, after, strict=True)]
    assert not any(change and not may for change, may in zip(changed, may_change, strict=True))
    assert sum(changed) == rewriting.replaced <= rewriting.replaceable


@given(paragraphs())
@settings(deadline=None, max_examples=300)
def test_probability_one_replaces_every_word_that_has_another_candidate(
    paragraph: tuple[str, list[Span], list[list[str]]],
) -> None:
    context, keep, candidates = paragraph
    rewriting = rewrite(Words.of(context, keep), candidates, np.random.default_rng(0), 1.0)
    assert rewriting.replaced == rewriting.replaceable
    before, after = words_of(context), words_of(rewriting.context)
    may_change = replaceable(context, word_spans(context), keep)
    for old, new, may, offered in zip(before, after, may_change, candidates, strict=True):
        cased = {take_case(other, old) for other in offered}
        others = {word for word in cased if word.casefold() != old.casefold()}
        if may and others:
            assert new in others
        else:
            assert new == old


@given(paragraphs(), st.integers(0, 99))
@settings(deadline=None)
def test_same_seed_gives_same_text(paragraph: tuple[str, list[Span], list[list[str]]], seed: int) -> None:
    first, second = (
        rewrite(Words.of(*paragraph[:2]), paragraph[2], np.random.default_rng(seed), 0.5) for _ in range(2)
    )
    assert first == second


def test_probability_zero_changes_nothing() -> None:
    context = "Old towns burn"
    rewriting = rewrite(Words.of(context, []), same_for_all(context, "river"), np.random.default_rng(0), 0.0)
    assert (rewriting.context, rewriting.replaced, rewriting.replaceable) == (context, 0, 3)


def test_probability_is_the_share_of_words_replaced() -> None:
    context = "town " * 5000
    rewriting = rewrite(Words.of(context, []), same_for_all(context, "river"), np.random.default_rng(0), 0.4)
    assert rewriting.replaced / rewriting.replaceable == pytest.approx(0.4, abs=0.03)


def test_distinct_candidates_are_equally_likely() -> None:
    context = "town " * 6000
    text = always(context, same_for_all(context, "river", "lake", "LAKE", "sea"))
    counts = [text.split().count(word) for word in ("river", "lake", "sea")]
    assert sum(counts) == 6000
    assert counts == pytest.approx([2000] * 3, abs=200)


@pytest.mark.parametrize(
    "word", ["the", "The", "THE", "B2B", "1990s", "don't", "Beyoncé\u2019s", "x", "e\u0301"]
)
def test_stop_words_numbers_apostrophes_and_single_letters_stay(word: str) -> None:
    context = f"{word} town"
    assert always(context, same_for_all(context, "river")) == f"{word} river"


def test_stop_words_are_lower_case_words() -> None:
    assert {"the", "of", "and", "whose", "cannot"} <= STOP_WORDS
    assert all(word.islower() and words_of(word) == [word] for word in STOP_WORDS)


@pytest.mark.parametrize(
    ("word", "candidate", "written"),
    [
        ("Norman", "viking", "Viking"),
        ("Norman", "NASA", "Nasa"),
        ("E\u0301cole", "lyce\u0301e", "Lyce\u0301e"),
        ("DUKES", "king", "KING"),
        ("dukes", "Oslo", "oslo"),
        ("A", "the", "The"),
        ("iPod", "Walkman", "Walkman"),
        ("McKay", "smith", "smith"),
        ("東京", "Oslo", "Oslo"),
    ],
)
def test_candidate_takes_the_case_of_the_word(word: str, candidate: str, written: str) -> None:
    assert take_case(candidate, word) == written


def test_candidate_equal_but_for_case_is_never_chosen() -> None:
    assert always("Towns burn", [["TOWNS", "towns"], ["BURN", "smoke"]]) == "Towns smoke"


@pytest.mark.parametrize(
    ("word", "same"), [("STRASSE", "straße"), ("IZMIR", "\u0131zm\u0131r"), ("iPod", "IPOD")]
)
def test_word_whose_only_candidate_is_itself_does_not_count(word: str, same: str) -> None:
    rewriting = rewrite(Words.of(word, []), [[same]], np.random.default_rng(0), 1.0)
    assert (rewriting.context, rewriting.replaced, rewriting.replaceable) == (word, 0, 0)


@pytest.mark.parametrize("keep", [(4, 8), (0, 5), (7, 9), (5, 6), (6, 6)])
def test_word_that_shares_a_character_with_an_answer_stays(keep: Span) -> None:
    context = "big town here"
    assert replaceable(context, word_spans(context), [keep])[1] is False


@pytest.mark.parametrize("keep", [(3, 4), (8, 9), (4, 4), (8, 8)])
def test_word_that_only_touches_an_answer_may_change(keep: Span) -> None:
    context = "big town here"
    assert replaceable(context, word_spans(context), [keep])[1] is True


def test_word_inside_two_answers_stays_and_both_move() -> None:
    context = "In big old Paris people sing"
    keep = [(11, 16), (7, 16), (28, 28)]
    candidates = [["x"], ["enormous"], ["young"], ["Oslo"], ["men"], ["shout"]]
    rewriting = rewrite(Words.of(context, keep), candidates, np.random.default_rng(0), 1.0)
    assert rewriting.context == "In enormous old Paris men shout"
    assert rewriting.starts == (16, 12, 31)


@pytest.mark.parametrize("keep", [(5, 4), (-1, 2), (0, 15)])
def test_span_outside_the_text_is_refused_by_its_numbers(keep: Span) -> None:
    with pytest.raises(InputError, match=rf"\[{keep[0]}, {keep[1]}\).* 14 characters"):
        rewrite(Words.of("Old towns burn", [keep]), [[], [], []], np.random.default_rng(0), 0.5)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(InputError, match="replace_probability"):
        rewrite(Words.of("town", []), [[]], np.random.default_rng(0), probability)
    with pytest.raises(InputError, match="replace_probability"):
        copies(Words.of("town", []), [[]], n=1, replace_probability=probability, seed=[0])


def test_candidates_for_other_words_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 words, the text has 2"):
        rewrite(Words.of("old town", []), [[]], np.random.default_rng(0), 0.5)


def test_negative_number_of_copies_is_refused() -> None:
    with pytest.raises(InputError, match="copies is -1"):
        copies(Words.of("town", []), [[]], n=-1, replace_probability=0.5, seed=[0])


@given(st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=30)
def test_copies_are_distinct_when_the_text_has_room(row: int) -> None:
    context = "Norman dukes ruled England while Saxon peasants ploughed muddy fields"
    made = copies(
        Words.of(context, [(19, 26)]),
        same_for_all(context, "river", "lake"),
        n=20,
        replace_probability=0.4,
        seed=[row],
    )
    assert len({context, *(copy.context for copy in made)}) == 21


def test_all_few_texts_there_are_come_before_a_repeat() -> None:
    made = copies(Words.of("big town", []), [["old"], ["city"]], n=3, replace_probability=0.5, seed=[7])
    assert {copy.context for copy in made} == {"old town", "big city", "old city"}


def test_number_of_copies_is_kept_when_nothing_may_change() -> None:
    made = copies(
        Words.of("1066 and the", [(0, 4)]), [["or"], ["an"]], n=4, replace_probability=1.0, seed=[0]
    )
    assert [copy.context for copy in made] == ["1066 and the"] * 4
    assert all(copy.starts == (0,) for copy in made)


@given(paragraphs(), st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=2))
@settings(deadline=None)
def test_more_copies_leave_the_first_ones_as_they_are(
    paragraph: tuple[str, list[Span], list[list[str]]], seed: list[int]
) -> None:
    few = copies(Words.of(*paragraph[:2]), paragraph[2], n=2, replace_probability=0.5, seed=seed)
    many = copies(Words.of(*paragraph[:2]), paragraph[2], n=5, replace_probability=0.5, seed=seed)
    assert many[:2] == few


def test_paragraphs_with_other_seeds_get_other_copies() -> None:
    context = "town " * 40
    first, second = (
        copies(
            Words.of(context, []), same_for_all(context, "river"), n=1, replace_probability=0.5, seed=[seed]
        )
        for seed in (1, 2)
    )
    assert first != second
