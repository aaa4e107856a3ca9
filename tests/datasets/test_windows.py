from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import (
    NO_ANSWER,
    NO_LABEL,
    SPACES,
    Windower,
    Windows,
    labels,
    labels_of_any,
    pad,
    token_budget_batches,
    whole,
    without_spaces,
)

TOKENIZERS = {"bert": tiny.wordpiece_tokenizer(), "roberta": tiny.bytelevel_tokenizer()}
FAMILIES = pytest.mark.parametrize("family", TOKENIZERS)
SMALL = WindowConfig(max_seq_len=40, doc_stride=7, max_query_len=16)

CONTEXT = tiny.squad_document()["data"][0]["paragraphs"][0]["context"]
ODD = [
    "owl 📚👩‍👩‍👧 owl",
    "cafe\u0301 Zu\u0308rich a\u0323\u0301",
    "a\u00a0b\u00a0 c",
    "東京は日本の首都です。",
    "한국어 각",
    "İstanbul ǅ ﬁne",
    "  two  spaces\n\n\tand lines ",
    "\u200b\u2060\ufeff",
    "[SEP] </s> <pad> [MASK]",
    "x" * 150,
]
texts = st.text(st.characters(codec="utf-8"), max_size=60) | st.lists(
    st.sampled_from([*CONTEXT.split(), *ODD]), max_size=40
).map(" ".join)


def windower(family: str, config: WindowConfig = SMALL, *, keep_spaces: bool = False) -> Windower:
    return Windower(TOKENIZERS[family], config, keep_spaces=keep_spaces)


def own_windows(family: str, question: str, context: str) -> Any:
    """The tokenizer's own windows, the reference; as lists, because a lone "" would count as no context."""
    return TOKENIZERS[family](
        [question],
        [context],
        truncation="only_second",
        max_length=SMALL.max_seq_len,
        stride=SMALL.doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
        split_special_tokens=True,  # what is typed in a text is text
    )


def assert_equal_to_own(windows: Windows, own: Any) -> None:
    assert [ids.tolist() for ids in windows.input_ids] == own["input_ids"]
    assert [ids.tolist() for ids in windows.type_ids] == own["token_type_ids"]
    for w in range(len(windows)):
        shown = [i for i, sequence in enumerate(own.sequence_ids(w)) if sequence == 1]
        begin, count = int(windows.context_start[w]), int(windows.context_tokens[w])
        assert shown == list(range(begin, begin + count))
        assert windows.window_offsets(w).tolist() == [list(own["offset_mapping"][w][i]) for i in shown]


@FAMILIES
@settings(deadline=None, max_examples=80)
@given(question=st.text(st.characters(codec="utf-8"), max_size=3), context=texts)
def test_windows_equal_the_tokenizers_own(family: str, question: str, context: str) -> None:
    windows = windower(family, keep_spaces=True).windows([(question, context)])
    assert_equal_to_own(windows, own_windows(family, question, context))


@FAMILIES
@settings(deadline=None, max_examples=80)
@given(context=texts)
def test_offsets_show_the_tokens_of_the_tokenizer_without_white_space(family: str, context: str) -> None:
    (clean,) = windower(family).windows([("Who?", context)]).offsets
    (own,) = windower(family, keep_spaces=True).windows([("Who?", context)]).offsets
    for (start, end), (own_start, own_end) in zip(clean.tolist(), own.tolist(), strict=True):
        assert context[start:end] == context[own_start:own_end].strip()


@given(
    st.lists(st.integers(0, 40), min_size=2, max_size=12), st.text("ab \t\u2003", min_size=40, max_size=40)
)
def test_span_without_spaces_is_the_stripped_text(edges: list[int], text: str) -> None:
    edges.sort()
    spans = np.array(list(itertools.pairwise(edges)), np.int32)
    clean = without_spaces(spans, text)
    assert (np.diff(clean, axis=0) >= 0).all(), "in order, as labels are searched for in them"
    for first, last in itertools.combinations_with_replacement(range(len(spans)), 2):
        assert text[clean[first, 0] : clean[last, 1]] == text[spans[first, 0] : spans[last, 1]].strip()


def test_all_white_space_of_unicode_is_known() -> None:
    assert [chr(point) for point in range(0x110000) if chr(point).isspace()] == [chr(p) for p in SPACES]


@FAMILIES
@pytest.mark.parametrize("context", [*ODD, " ".join(ODD), "", CONTEXT])
def test_odd_text_equals_the_tokenizers_own(family: str, context: str) -> None:
    windows = windower(family, keep_spaces=True).windows([("Who?", context)])
    assert_equal_to_own(windows, own_windows(family, "Who?", context))


@FAMILIES
def test_tokenizers_own_settings_neither_count_nor_change(family: str) -> None:
    tokenizer = (tiny.wordpiece_tokenizer if family == "bert" else tiny.bytelevel_tokenizer)()
    plain = Windower(tokenizer, SMALL).windows([("Who?", CONTEXT)])
    tokenizer("a", max_length=3, truncation=True, padding="max_length")
    before = tokenizer.backend_tokenizer.to_str()
    again = Windower(tokenizer, SMALL).windows([("Who?", CONTEXT)])
    assert [ids.tolist() for ids in again.input_ids] == [ids.tolist() for ids in plain.input_ids]
    assert tokenizer.backend_tokenizer.to_str() == before


@FAMILIES
@pytest.mark.parametrize("text", [CONTEXT, CONTEXT * 3])
def test_long_question_is_cut_to_max_query_len(family: str, text: str) -> None:
    windows = windower(family).windows([(text, "The owl.")])
    ids = TOKENIZERS[family](text, add_special_tokens=False)["input_ids"]
    assert windows.input_ids[0][1 : 1 + SMALL.max_query_len].tolist() == ids[: SMALL.max_query_len]
    assert len(windows) == 1
    assert (windows.lengths <= SMALL.max_seq_len).all()
    between = 2 if family == "roberta" else 1
    assert windows.context_start[0] == 1 + SMALL.max_query_len + between


@FAMILIES
@settings(deadline=None, max_examples=40)
@given(context=texts, stride=st.integers(0, 15))
def test_every_token_is_covered_and_neighbours_share_doc_stride(
    family: str, context: str, stride: int
) -> None:
    config = WindowConfig(max_seq_len=40, doc_stride=stride, max_query_len=16)
    windows = windower(family, config).windows([("Who built it?", context)])
    ends = windows.first_token + windows.context_tokens
    assert windows.first_token[0] == 0
    assert ends[-1] == len(windows.offsets[0])
    assert (ends[:-1] - windows.first_token[1:] == stride).all()
    assert (windows.lengths[:-1] == config.max_seq_len).all()


@FAMILIES
def test_pairs_share_texts_and_keep_their_order(family: str) -> None:
    who, when = "Who?", "When was it built?"
    pairs = [(when, CONTEXT), (who, "The owl."), (who, CONTEXT), (when, "")]
    together = windower(family).windows(pairs)
    assert sorted(together.pair.tolist()) == together.pair.tolist()
    for number, pair in enumerate(pairs):
        alone = windower(family).windows([pair])
        rows = np.flatnonzero(together.pair == number)
        assert [together.input_ids[w].tolist() for w in rows] == [ids.tolist() for ids in alone.input_ids]
        assert together.offsets[number].tolist() == alone.offsets[0].tolist()


@FAMILIES
def test_empty_context_is_one_window_without_context(family: str) -> None:
    windows = windower(family).windows([("Who?", "")])
    assert len(windows) == 1
    assert windows.context_tokens.tolist() == [0]
    assert windows.offsets[0].shape == (0, 2)


@FAMILIES
@settings(deadline=None, max_examples=40)
@given(parts=st.lists(st.sampled_from(["\ud83d", "\ude00", "owl ", "é", " ", "📚"]), max_size=12))
def test_lone_surrogates_keep_length_and_offsets(family: str, parts: list[str]) -> None:
    text = "".join(parts)
    clean = whole(text)
    assert len(clean) == len(text)
    clean.encode()
    assert all(
        a == b or (b == "\ufffd" and 0xD800 <= ord(a) <= 0xDFFF) for a, b in zip(text, clean, strict=True)
    )
    windows = windower(family).windows([("Who?", text)])
    assert windows.offsets[0].tolist() == windower(family).windows([("Who?", clean)]).offsets[0].tolist()
    assert not len(windows.offsets[0]) or windows.offsets[0].max() <= len(text)


def test_two_halves_side_by_side_stay_two_characters() -> None:
    assert whole("\ud83d\ude00!") == "\ufffd\ufffd!"


@st.composite
def answered(draw: st.DrawFn) -> tuple[str, int, int]:
    words = draw(
        st.lists(
            st.sampled_from([*CONTEXT.split(), "📚", "東京", "Zoë", "naïve", "각"]), min_size=1, max_size=40
        )
    )
    first = draw(st.integers(0, len(words) - 1))
    last = draw(st.integers(first, min(first + 2, len(words) - 1)))
    space = draw(st.sampled_from([" ", "  ", "\u00a0", "\n"]))
    start = sum(len(word) + len(space) for word in words[:first])
    return space.join(words), start, start + len(space.join(words[first : last + 1]))


@FAMILIES
@settings(deadline=None, max_examples=80)
@given(case=answered())
def test_label_covers_the_answer(family: str, case: tuple[str, int, int]) -> None:
    context, start, end = case
    windows = windower(family, WindowConfig(max_seq_len=64, doc_stride=30, max_query_len=16)).windows(
        [("Who?", context)]
    )
    firsts, lasts = labels(windows, [(start, end)])
    held = 0
    offsets = windows.offsets[0]
    cut = [i for i in range(len(offsets)) if offsets[i, 0] < end and offsets[i, 1] > start]
    for w in range(len(windows)):
        low = windows.first_token[w]
        if not (low <= cut[0] and cut[-1] < low + windows.context_tokens[w]):
            assert firsts[w] == lasts[w] == NO_ANSWER
            continue
        held += 1
        shift = low - windows.context_start[w]
        begin, stop = int(offsets[firsts[w] + shift, 0]), int(offsets[lasts[w] + shift, 1])
        assert begin <= start
        assert end <= stop
        # Words end at token borders, but a byte-level token may begin with spaces or span "\\u00a0".
        assert context[begin:stop].split() == context[start:end].split()
    assert held or len(cut) > 31


@FAMILIES
def test_answer_cut_by_a_window_is_labelled_in_one_that_holds_it(family: str) -> None:
    windows = windower(family).windows([("Who?", CONTEXT)])
    assert len(windows) > 1
    offsets = windows.offsets[0]
    border = int(windows.context_tokens[0])  # first token after window 0
    span = (int(offsets[border - 1, 0]), int(offsets[border, 1]))
    starts, ends = labels(windows, [span])
    assert (starts[0], ends[0]) == (NO_ANSWER, NO_ANSWER)
    begin = int(windows.context_start[1] - windows.first_token[1])
    assert (starts[1], ends[1]) == (border - 1 + begin, border + begin)


@FAMILIES
def test_answer_on_token_borders_comes_back_exactly(family: str) -> None:
    windows = windower(family, WindowConfig()).windows([("Who?", CONTEXT)])
    start = CONTEXT.index("Edith Marlow")
    (first,), (last,) = labels(windows, [(start, start + 12)])
    shown = windows.window_offsets(0)
    begin = windows.context_start[0]
    assert CONTEXT[shown[first - begin, 0] : shown[last - begin, 1]] == "Edith Marlow"


def test_all_bytes_of_an_emoji_are_labelled() -> None:
    windows = windower("roberta").windows([("Who?", "owl 📚 owl")])
    (first,), (last,) = labels(windows, [(4, 5)])
    assert last > first
    assert {
        tuple(o) for o in windows.window_offsets(0)[first - windows.context_start[0] :][: last - first]
    } == {(4, 5)}


def test_unanswerable_pair_is_labelled_with_the_first_token() -> None:
    starts, ends = labels(windower("bert").windows([("Who?", "a cat")] * 2), [None, (2, 5)])
    assert (starts[0], ends[0]) == (NO_ANSWER, NO_ANSWER)
    assert starts[1] > 0


@FAMILIES
@settings(deadline=None, max_examples=40)
@given(case=answered(), other=st.floats(0, 1), first=st.booleans())
def test_window_is_labelled_with_the_first_answer_that_it_holds(
    family: str, case: tuple[str, int, int], other: float, first: bool
) -> None:
    context, start, end = case
    words = [match.span() for match in re.finditer(r"\S+", context)]
    spans = [(start, end), words[int(other * (len(words) - 1))]]
    if first:
        spans.reverse()
    windows = windower(family, WindowConfig(max_seq_len=64, doc_stride=30, max_query_len=16)).windows(
        [("Who?", context), ("Who?", context)]
    )
    found = np.stack(labels_of_any(windows, [spans, []]))
    one, two, none = (np.stack(labels(windows, [span, None])) for span in (*spans, None))
    assert found.tolist() == np.where(one > 0, one, np.where(two > 0, two, none)).tolist()


def test_second_answer_is_labelled_where_the_first_has_no_token() -> None:
    windows = windower("bert").windows([("Who?", "a  cat")])
    cat = [side.tolist() for side in labels(windows, [(3, 6)])]
    assert [side.tolist() for side in labels_of_any(windows, [[(1, 3), (3, 6)]])] == cat
    assert [side.tolist() for side in labels_of_any(windows, [[(1, 3)]])] == [[NO_LABEL], [NO_LABEL]]


@pytest.mark.parametrize("span", [(1, 3), (0, 1)])
def test_answer_without_a_token_teaches_nothing(span: tuple[int, int]) -> None:
    context = "a  b" if span == (1, 3) else "\u200bword"
    starts, ends = labels(windower("bert").windows([("Who?", context)]), [span])
    assert (starts.tolist(), ends.tolist()) == ([NO_LABEL], [NO_LABEL])


def test_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False
        name_or_path = "some/model"

    with pytest.raises(InputError, match="some/model: its tokenizer gives no character offsets"):
        Windower(Slow(), SMALL)


def test_padding_fills_to_the_longest_or_a_given_length() -> None:
    rows = [np.array([1, 2], np.int32), np.array([], np.int32)]
    assert pad(rows, 9).tolist() == [[1, 2], [9, 9]]
    assert pad(rows, 0, 3).tolist() == [[1, 2, 0], [0, 0, 0]]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_batches_hold_every_window_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(np.array(lengths, np.int32), budget)
    assert sorted(int(w) for batch in batches for w in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[w] for w in batch) <= budget


@FAMILIES
@pytest.mark.parametrize("text", ["The owl.", *ODD[:-1]])
def test_window_of_a_short_text_equals_the_tokenizers_own(family: str, text: str) -> None:
    own = TOKENIZERS[family](text, return_token_type_ids=True, split_special_tokens=True)
    windows = windower(family, WindowConfig(max_seq_len=128, doc_stride=32)).text_windows([text])
    if len(own["input_ids"]) == 2:  # nothing but special tokens
        assert len(windows) == 0
        return
    assert [ids.tolist() for ids in windows.input_ids] == [own["input_ids"]]
    assert [ids.tolist() for ids in windows.type_ids] == [own["token_type_ids"]]
    assert (windows.first_token.tolist(), windows.context_start.tolist()) == ([0], [1])
    assert windows.context_tokens.tolist() == [len(own["input_ids"]) - 2]


@FAMILIES
@settings(deadline=None, max_examples=60)
@given(
    alone=st.lists(texts, max_size=4), max_seq_len=st.integers(21, 60), doc_stride=st.sampled_from([0, 3, 10])
)
def test_windows_of_long_texts_lose_no_token_and_repeat_none(
    family: str, alone: list[str], max_seq_len: int, doc_stride: int
) -> None:
    config = WindowConfig(max_seq_len=max_seq_len, doc_stride=doc_stride, max_query_len=6)
    windows = windower(family, config).text_windows(alone)
    before, *_, after = TOKENIZERS[family]("owl")["input_ids"]
    for number, text in enumerate(alone):
        mine = np.flatnonzero(windows.pair == number)
        shown = [windows.input_ids[w].tolist() for w in mine]
        assert all(ids[0] == before and ids[-1] == after for ids in shown)
        tokenizer = TOKENIZERS[family]
        tokens = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert [token for ids in shown for token in ids[1:-1]] == tokens
        assert [len(ids) for ids in shown[:-1]] == [max_seq_len] * (len(shown) - 1)
        assert windows.first_token[mine].tolist() == list(range(0, len(tokens), max_seq_len - 2))
    assert sorted(windows.pair.tolist()) == windows.pair.tolist()
    assert not len(windows) or windows.lengths.min() > 2
    assert not len(windows) or windows.lengths.max() <= max_seq_len


@FAMILIES
def test_texts_without_a_token_make_no_window_and_keep_the_others_numbers(family: str) -> None:
    windows = windower(family).text_windows(["", "The owl.", "", CONTEXT])
    assert set(windows.pair.tolist()) == {1, 3}
    assert len(windower(family).text_windows([])) == 0
