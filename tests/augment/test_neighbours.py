from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tinyqa_ray.augment import neighbours as module
from tinyqa_ray.augment.neighbours import Neighbours, nearest, neighbour_table, whole_words
from tinyqa_ray.core.errors import InputError


def brute_force(matrix: NDArray[np.float32], k: int) -> tuple[list[list[int]], list[list[float]]]:
    rows = matrix.astype(np.float64)
    indices, cosines = [], []
    for i, row in enumerate(rows):
        ranked = []
        for j, other in enumerate(rows):
            lengths = float(np.linalg.norm(row) * np.linalg.norm(other))
            if j != i:
                ranked.append((-float(row @ other) / lengths if lengths else 0.0, j))
        ranked.sort()
        indices.append([j for _, j in ranked[:k]])
        cosines.append([-score for score, _ in ranked[:k]])
    return indices, cosines


@st.composite
def small_matrices(draw: st.DrawFn) -> NDArray[np.float32]:
    """Small whole numbers: many equal, parallel and zero rows."""
    n, d = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    values = draw(st.lists(st.integers(-2, 2), min_size=n * d, max_size=n * d))
    return np.array(values, dtype=np.float32).reshape(n, d)


def nearest_in_blocks(
    matrix: NDArray[np.float32], k: int, block_rows: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", block_rows)
        return nearest(matrix, k=k)


@pytest.mark.parametrize(("n", "d", "k"), [(2, 1, 1), (40, 3, 5), (60, 16, 59)])
def test_nearest_is_what_comparing_every_pair_gives(n: int, d: int, k: int) -> None:
    matrix = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
    if d == 1:
        matrix = np.abs(matrix)
    indices, cosines = nearest_in_blocks(matrix, k, 7)
    expected_indices, expected_cosines = brute_force(matrix, k)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)
    assert (str(indices.dtype), str(cosines.dtype)) == ("int32", "float32")
    if d > 3 or n == 2:
        assert indices.tolist() == expected_indices


@given(small_matrices(), st.data())
@settings(deadline=None)
def test_ties_are_broken_by_the_lower_index(matrix: NDArray[np.float32], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(matrix) - 1))
    indices, cosines = nearest(matrix, k=k)
    np.testing.assert_allclose(cosines, brute_force(matrix, k)[1], atol=1e-6)
    everything = nearest(matrix, k=len(matrix) - 1)
    for row in range(len(matrix)):
        ranked = list(zip(-everything[1][row], everything[0][row], strict=True))
        assert ranked == sorted(ranked)
        assert sorted([row, *everything[0][row].tolist()]) == list(range(len(matrix)))
        assert indices[row].tolist() == everything[0][row, :k].tolist()


@given(small_matrices(), st.integers(1, 5))
@settings(deadline=None)
def test_block_size_changes_nothing(matrix: NDArray[np.float32], block_rows: int) -> None:
    whole, blocked = nearest(matrix, k=1), nearest_in_blocks(matrix, 1, block_rows)
    assert whole[0].tolist() == blocked[0].tolist()
    assert whole[1].tobytes() == blocked[1].tobytes()


def test_block_size_changes_no_bit_of_a_larger_result() -> None:
    matrix = np.random.default_rng(3).standard_normal((500, 48)).astype(np.float32)
    matrix[100:200] = matrix[:100]
    whole, blocked = nearest(matrix, k=20), nearest_in_blocks(matrix, 20, 33)
    assert whole[0].tobytes() == blocked[0].tobytes()
    assert whole[1].tobytes() == blocked[1].tobytes()


def test_length_of_a_row_does_not_matter() -> None:
    matrix = np.array([[1, 1], [3e38, 3e38], [1e-38, 0], [0, 0]], dtype=np.float32)
    indices, cosines = nearest(matrix, k=3)
    assert indices[[0, 3]].tolist() == [[1, 2, 3], [0, 1, 2]]
    np.testing.assert_allclose(cosines[[0, 3]], [[1, 0.5**0.5, 0], [0, 0, 0]], atol=1e-6)


def test_cosine_of_equal_rows_is_one_and_never_more() -> None:
    matrix = np.random.default_rng(5).standard_normal((200, 24)).astype(np.float32).repeat(2, axis=0)
    _, cosines = nearest(matrix, k=1)
    assert cosines.max() <= 1.0
    np.testing.assert_allclose(cosines, 1.0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0; a matrix of 3 rows allows 1 to 2"),
        ({"k": 3}, "k is 3"),
    ],
)
def test_number_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nearest(np.eye(3, dtype=np.float32), **options)


def test_matrix_that_is_no_finite_table_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        nearest(np.array([[1.0], [np.nan]], dtype=np.float32), k=1)
    with pytest.raises(InputError, match="shape"):
        nearest(np.ones(3, dtype=np.float32), k=1)


WORDPIECE = {
    "[PAD]": 0,
    "[unused1]": 1,
    "##ing": 5,
    "##s": 6,
    "town": 4,
    "été": 3,
    "a": 2,
    "1990s": 7,
    "x-y": 8,
}
BYTELEVEL = {"<s>": 0, "Ġtown": 4, "Town": 1, "ĠTown": 2, "ĠÃ©tÃ©": 3, "ĠÃ": 5, "Ġa": 6, "Ġ19": 7, "Ġ'd": 8}


def test_whole_words_of_wordpiece_have_no_continuation_and_only_letters() -> None:
    assert whole_words(WORDPIECE) == (["été", "town"], [3, 4])


def test_whole_words_of_bytelevel_start_with_a_space_and_are_decoded() -> None:
    assert whole_words(BYTELEVEL) == (["Town", "été", "town"], [2, 3, 4])


def test_style_is_found_from_the_vocabulary() -> None:
    assert whole_words(WORDPIECE, style="auto") == whole_words(WORDPIECE, style="wordpiece")
    assert whole_words(BYTELEVEL, style="auto") == whole_words(BYTELEVEL, style="bytelevel")
    assert whole_words({"river": 1, "lake": 0}) == (["lake", "river"], [0, 1])


@given(st.text(st.characters(categories=["L"]), min_size=2, max_size=6))
@settings(deadline=None)
def test_bytelevel_token_of_any_letters_is_decoded(word: str) -> None:
    # GPT-2's alphabet: bytes without a printable Latin-1 character move to U+0100 and on, in order.
    hidden = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
    token = "".join(chr(256 + hidden.index(b) if b in hidden else b) for b in word.encode())
    assert whole_words({f"Ġ{token}": 9}) == ([word], [9])


def test_sentencepiece_vocabulary_and_unknown_style_are_refused() -> None:
    with pytest.raises(InputError, match="SentencePiece"):
        whole_words({"▁town": 0, "s": 1})
    with pytest.raises(InputError, match="style is 'spm'"):
        whole_words({"town": 0}, style="spm")  # type: ignore[arg-type]


def angles(*degrees: float) -> NDArray[np.float32]:
    turn = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)


WORDS = ["king", "King", "KING", "queen", "Queen", "duke", "pawn"]
MATRIX = angles(0, 1, 2, 10, 11, 20, 180)


def test_neighbours_differ_by_more_than_case_and_come_nearest_first() -> None:
    table = neighbour_table(WORDS, MATRIX, k=2)
    assert table.lookup("king") == ("queen", "duke")
    assert table.lookup("duke") == ("Queen", "KING")
    assert table.cosines["king"] == pytest.approx(np.cos(np.deg2rad([10, 20])), abs=1e-6)


def test_forms_of_one_word_do_not_crowd_out_the_others() -> None:
    words = ["ab", "cd", "Cd", "cD", "CD", "ef", "Ef", "eF", "EF", "gh"]
    table = neighbour_table(words, angles(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), k=3)
    assert table.lookup("ab") == ("cd", "ef", "gh")
    assert all(len(neighbours) == 3 for neighbours in table.words.values())


def test_neighbours_of_a_negative_cosine_are_left_out() -> None:
    table = neighbour_table(WORDS, MATRIX, k=9)
    assert table.lookup("pawn") == ()
    assert table.lookup("king") == ("queen", "duke")


@given(st.integers(0, 999), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_neighbours_are_as_many_as_asked_for_where_there_are_so_many(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    words = [form for stem in ("ab", "cd", "ef", "gh", "ij") for form in (stem, stem.title(), stem.upper())]
    words = [words[i] for i in rng.permutation(len(words))[: rng.integers(6, len(words))]]
    table = neighbour_table(words, rng.random((len(words), 3)), k=k)
    stems = {word.casefold() for word in words}
    for word, neighbours in table.words.items():
        folded = [other.casefold() for other in neighbours]
        assert len(set(folded)) == len(folded) == min(k, len(stems) - 1)
        assert word.casefold() not in folded
        assert list(table.cosines[word]) == sorted(table.cosines[word], reverse=True)


def test_lookup_takes_the_exact_form_then_the_lower_case_one() -> None:
    table = Neighbours(
        words={"us": ("them",), "US": ("UK",), "town": ("city",), "Bare": (), "bare": ("naked",)},
        cosines={"us": (0.5,), "US": (0.5,), "town": (0.5,), "Bare": (), "bare": (0.5,)},
    )
    looked_up = [table.lookup(word) for word in ("US", "us", "Town", "TOWN", "Bare", "river")]
    assert looked_up == [("UK",), ("them",), ("city",), ("city",), ("naked",), ()]


def test_table_of_neighbours_survives_arrow() -> None:
    table = neighbour_table(WORDS, MATRIX, k=2)
    arrow = table.to_table()
    assert arrow.schema.names == ["word", "neighbours", "cosine"]
    assert arrow.schema.field("neighbours").type == pa.list_(pa.string())
    assert arrow.schema.field("cosine").type == pa.list_(pa.float32())
    assert Neighbours.from_table(arrow) == table


def test_arrow_table_without_a_column_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="no column neighbours, cosine"):
        Neighbours.from_table(pa.table({"word": ["town"]}))


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["town"], {"k": 1}, "1 words"),
        (["town", "lake", "sea"], {"k": 1}, r"3 words were given for a matrix of shape \(2, 2\)"),
        (["town", "town"], {"k": 1}, "'town' is given 2 times"),
        (["town", "lake"], {"k": 0}, "k is 0"),
    ],
)
def test_unusable_words_or_numbers_are_refused(
    words: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        neighbour_table(words, angles(0, 90), **options)
