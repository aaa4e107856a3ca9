from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.datasets.windows import Int, Windows
from tinyqa_ray.reader.spans import Float, Reading, Span, beside, best_spans, readings, sigmoid

# Halves are exact in float32, so that sums compare equal; ties are common on purpose.
logit = st.integers(-20, 20).map(lambda n: n / 2)


def numbers(size: int, impossible: bool = False) -> st.SearchStrategy[list[float]]:
    return st.lists(logit | st.just(-math.inf) if impossible else logit, min_size=size, max_size=size)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[Float, Float]:
    rows, tokens = draw(st.integers(1, 4)), draw(st.integers(0, 8))
    made = [[draw(numbers(tokens, impossible=True)) for _ in range(rows)] for _ in range(2)]
    starts, ends = (np.array(block, np.float32).reshape(rows, tokens) for block in made)
    return starts, ends


def candidates(starts: Float, ends: Float, longest: int) -> list[tuple[float, int, int]]:
    """Every possible span of one row, in slow Python."""
    return [
        (float(starts[a] + ends[b]), a, b)
        for a in range(len(starts))
        for b in range(a, min(a + longest, len(starts)))
        if math.isfinite(starts[a] + ends[b])
    ]


@settings(deadline=None, max_examples=150)
@given(block=blocks(), longest=st.integers(1, 10), k=st.integers(1, 6))
def test_best_spans_are_those_of_a_slow_loop(block: tuple[Float, Float], longest: int, k: int) -> None:
    starts, ends = block
    row, first, last, score = best_spans(starts, ends, longest, k)
    for r in range(len(starts)):
        found = [(float(s), int(a), int(b)) for s, a, b in zip(score, first, last, strict=True)]
        found = [span for span, where in zip(found, row, strict=True) if where == r]
        left = candidates(starts[r], ends[r], longest)
        for span in found:
            assert span in left
            assert span[0] == max(left)[0]
            left = [other for other in left if other[2] < span[1] or span[2] < other[1]]
        assert len(found) == k or not left


def test_impossible_row_has_no_span() -> None:
    nothing = np.full((1, 3), -np.inf, np.float32)
    assert [len(part) for part in best_spans(nothing, np.zeros((1, 3), np.float32), 3, 2)] == [0] * 4
    assert [len(part) for part in best_spans(nothing[:, :0], nothing[:, :0], 3, 2)] == [0] * 4


def build(
    pair: list[int], first: list[int], begin: int, count: list[int], offsets: list[Int], rows: list[Float]
) -> Windows:
    """Windows of which only the places count here."""
    ids = [np.zeros(len(row), np.int32) for row in rows]
    column = [np.array(values, np.int32) for values in (pair, first, [begin] * len(pair), count)]
    return Windows(ids, ids, column[0], column[1], column[2], column[3], offsets)


@st.composite
def cut(draw: st.DrawFn) -> tuple[Windows, list[Float], list[Float]]:
    """Windows of some pairs: two tokens before the context, one after; some tokens show no character."""
    sizes = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    pair, first, count, offsets, starts, ends = [], [], [], [], [], []
    for number, size in enumerate(sizes):
        widths = draw(st.lists(st.sampled_from([0, 1, 1, 1, 2]), min_size=size, max_size=size))
        edges = np.cumsum([0, *widths])
        offsets.append(np.stack([edges[:-1], edges[1:]], axis=1).astype(np.int32).reshape(-1, 2))
        for begin in range(0, max(size, 1), 3):  # windows of 4 tokens that share one
            shown = max(min(4, size - begin), 0)
            pair.append(number)
            first.append(begin)
            count.append(shown)
            starts.append(np.array(draw(numbers(shown + 3)), np.float32))
            ends.append(np.array(draw(numbers(shown + 3)), np.float32))
    return build(pair, first, 2, count, offsets, starts), starts, ends


def slow_spans(
    windows: Windows, starts: list[Float], ends: list[Float], pair: int, longest: int
) -> set[Span]:
    found = set()
    for w in np.flatnonzero(windows.pair == pair):
        shown = windows.window_offsets(int(w))
        for score, a, b in candidates(starts[w][2:-1], ends[w][2:-1], longest):
            if shown[a, 0] < shown[a, 1]:
                found.add(Span(int(shown[a, 0]), int(shown[b, 1]), score))
    return found


@settings(deadline=None, max_examples=150)
@given(case=cut(), longest=st.integers(1, 5))
def test_best_reading_is_that_of_a_slow_loop(
    case: tuple[Windows, list[Float], list[Float]], longest: int
) -> None:
    windows, starts, ends = case
    found = readings(windows, starts, ends, max_answer_tokens=longest)
    assert len(found) == len(windows.offsets)
    for pair, reading in enumerate(found):
        every = slow_spans(windows, starts, ends, pair, longest)
        assert len(reading.spans) == min(1, len(every))
        if every:
            assert reading.spans[0] in every
            assert reading.spans[0].score == max(span.score for span in every)
        nulls = [starts[w][0] + ends[w][0] for w in np.flatnonzero(windows.pair == pair)]
        assert reading.null_score == min(nulls)


@settings(deadline=None, max_examples=100)
@given(case=cut(), longest=st.integers(1, 5), top_k=st.integers(2, 5))
def test_further_spans_do_not_overlap_and_fall_in_score(
    case: tuple[Windows, list[Float], list[Float]], longest: int, top_k: int
) -> None:
    windows, starts, ends = case
    best = readings(windows, starts, ends, max_answer_tokens=longest)
    for pair, reading in enumerate(readings(windows, starts, ends, max_answer_tokens=longest, top_k=top_k)):
        spans = reading.spans
        assert set(spans) <= slow_spans(windows, starts, ends, pair, longest)
        assert [span.score for span in spans[:1]] == [span.score for span in best[pair].spans]
        assert sorted(spans, key=lambda span: -span.score) == list(spans)
        by_place = sorted(spans, key=lambda span: span.start)
        assert all(one.end <= two.start for one, two in pairwise(by_place))
        assert len(spans) <= top_k


def one_window(starts: list[float], ends: list[float]) -> tuple[Windows, list[Float], list[Float]]:
    """One window of a context of one-character tokens after the first token."""
    count = len(starts) - 1
    offsets = np.stack([np.arange(count), np.arange(1, count + 1)], axis=1).astype(np.int32).reshape(-1, 2)
    rows = [np.array(starts, np.float32)]
    return build([0], [0], 1, [count], [offsets], rows), rows, [np.array(ends, np.float32)]


def test_peak_does_not_crowd_out_further_answers() -> None:
    logits = [0.0] + [1.0] * 100
    logits[50:60] = [9.0] * 10
    (reading,) = readings(*one_window(logits, logits), max_answer_tokens=30, top_k=5)
    assert len(reading.spans) == 5


def test_span_is_never_longer_than_allowed() -> None:
    case = one_window([0, 9, 0, 0, 0], [0, 0, 0, 0, 9])
    assert readings(*case, max_answer_tokens=4)[0].spans == (Span(0, 4, 18.0),)
    assert readings(*case, max_answer_tokens=3)[0].spans[0].score == 9.0


def test_answer_neither_ends_before_it_starts_nor_leaves_the_context() -> None:
    (reading,) = readings(*one_window([9, 0, 5], [9, 5, 0]), max_answer_tokens=5)
    assert reading.spans[0].score == 5.0
    assert reading.null_score == 18.0


def test_token_without_characters_does_not_hide_the_next_best() -> None:
    windows, starts, ends = one_window([0, 9, 1], [0, 9, 1])
    windows.offsets[0][:] = [[1, 1], [1, 4]]
    assert readings(windows, starts, ends, max_answer_tokens=1)[0].spans == (Span(1, 4, 2.0),)


def test_empty_context_has_no_span_and_certainly_no_answer() -> None:
    (reading,) = readings(*one_window([1.0], [1.0]), max_answer_tokens=5)
    assert reading == Reading((), 2.0)
    assert reading.na_prob == 1.0


def test_null_score_is_the_smallest_of_the_windows() -> None:
    starts = [np.array([3, 1], np.float32), np.array([-4, 2], np.float32)]
    windows = build([0, 0], [0, 1], 1, [1, 1], [np.array([[0, 1], [1, 2]], np.int32)], starts)
    (reading,) = readings(windows, starts, starts, max_answer_tokens=2)
    assert reading.null_score == -8.0
    assert reading.spans == (Span(1, 2, 4.0),)
    assert reading.na_prob == pytest.approx(1 / (1 + math.exp(12)))


@given(st.floats(-700, 700))
def test_sigmoid_is_the_logistic_function(x: float) -> None:
    assert sigmoid(x) == pytest.approx(1 / (1 + math.exp(-x)), rel=1e-12)
    assert 0 < sigmoid(x) <= 1


def test_sigmoid_does_not_overflow() -> None:
    assert (sigmoid(1e9), sigmoid(-1e9), sigmoid(math.inf), sigmoid(-math.inf)) == (1.0, 0.0, 1.0, 0.0)


def words_window(text: str, scores: dict[str, float]) -> tuple[Windows, list[Float], list[Float]]:
    """One window whose tokens are words and signs, the start and end logits of each as given, -9 if not."""
    tokens = list(re.finditer(r"\w+|[^\w\s]", text))
    logits = [0.0, *(scores.get(token.group(), -9.0) for token in tokens)]
    windows, starts, ends = one_window(logits, logits)
    windows.offsets[0] = np.array([token.span() for token in tokens], np.int32)
    return windows, starts, ends


def kept_words(text: str, scores: dict[str, float], top_k: int = 3) -> list[str]:
    (reading,) = readings(*words_window(text, scores), max_answer_tokens=1, top_k=top_k, contexts=[text])
    return [text[span.start : span.end] for span in reading.spans]


def test_fragments_beside_a_better_answer_are_no_candidates() -> None:
    text = "They turn for almost six, and burned in 1809."
    assert kept_words(text, {"six": 8, "almost": 6, "for": 5, "1809": 4}) == ["six", "1809", "They"]
    # A fragment counts from when it was looked at: what is better than it is not held against it.
    assert kept_words(text, {"six": 8, "almost": 6, "for": 7})[:2] == ["six", "for"]


def test_items_of_a_list_and_lines_are_candidates() -> None:
    scores = {"Ann": 8.0, "Bob": 7.0, "Cy": 6.0}
    for text in ("Ann, Bob and Cy", "Ann\nBob\nCy", "Ann (Bob) / Cy", "Ann; Bob: Cy"):
        assert kept_words(text, scores) == ["Ann", "Bob", "Cy"]
    for text in ("Ann Bob Cy", "Ann-Bob \u201cCy", "Ann\u00a0Bob\tCy"):
        assert kept_words(text, scores) == ["Ann"]


def test_fragments_do_not_take_the_places_of_answers() -> None:
    text = " ".join(f"a{i} b{i}," for i in range(10))
    scores = {
        f"{letter}{i}": 9.0 - i + value for i in range(10) for letter, value in (("a", 0.5), ("b", 0.0))
    }
    assert kept_words(text, scores, top_k=5) == [f"a{i}" for i in range(5)]


def test_without_a_text_only_overlaps_count() -> None:
    case = words_window("for almost six", {"six": 8, "almost": 6, "for": 5})
    (reading,) = readings(*case, max_answer_tokens=1, top_k=3)
    assert [span.score for span in reading.spans] == [16.0, 12.0, 10.0]


@settings(deadline=None, max_examples=100)
@given(case=cut(), longest=st.integers(1, 5), top_k=st.integers(2, 6))
def test_kept_spans_are_apart_in_the_text(
    case: tuple[Windows, list[Float], list[Float]], longest: int, top_k: int
) -> None:
    windows, starts, ends = case
    texts = [
        "x, y- z\n"[: int(offsets[-1, 1])] + "x" * 20 if len(offsets) else "" for offsets in windows.offsets
    ]
    found = readings(windows, starts, ends, max_answer_tokens=longest, top_k=top_k, contexts=texts)
    plain = readings(windows, starts, ends, max_answer_tokens=longest)
    for reading, best, text in zip(found, plain, texts, strict=True):
        assert reading.spans[:1] == best.spans
        for one, two in pairwise(sorted(reading.spans, key=lambda span: span.start)):
            assert one.end <= two.start
            assert not beside(text, one.start, one.end, two.start, two.end)


@settings(deadline=None, max_examples=100)
# Quarters: a margin that float32 cannot add to a score would be another one there.
@given(case=cut(), least=st.integers(-80, 80).map(lambda quarters: quarters / 4))
def test_only_the_best_span_may_be_below_the_least_margin(
    case: tuple[Windows, list[Float], list[Float]], least: float
) -> None:
    windows, starts, ends = case
    every = readings(windows, starts, ends, max_answer_tokens=3, top_k=50)
    for whole, found in zip(
        every, readings(windows, starts, ends, max_answer_tokens=3, top_k=50, least_margin=least), strict=True
    ):
        good = [span for span in whole.spans[1:] if span.score - whole.null_score >= least]
        assert list(found.spans) == [*whole.spans[:1], *good]
