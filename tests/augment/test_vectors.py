from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.augment import vectors
from tinyqa_ray.augment.neighbours import neighbour_table
from tinyqa_ray.augment.vectors import read_vectors
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

GLOVE = "the 0.5 -1 2e-3\n, 9 9 9\n19 8 8 8\na 7 7 7\nÉtude 1 2 3\ndon't 6 6 6\nriver 4 5 6\n"


def saved(folder: Path, content: str | bytes, name: str = "vectors.txt") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_rows_of_whole_words_are_read_in_order(tmp_path: Path) -> None:
    words, matrix = read_vectors(saved(tmp_path, GLOVE), limit=100)
    assert words == ["the", "Étude", "river"]
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.array([[0.5, -1, 2e-3], [1, 2, 3], [4, 5, 6]], np.float32))


def test_limit_counts_whole_words_and_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = saved(tmp_path, GLOVE + "broken line\n")
    assert read_vectors(path, limit=2)[0] == ["the", "Étude"]
    assert read_vectors(path, limit=3)[0] == ["the", "Étude", "river"]
    with pytest.raises(InputError, match="line 8 has 1 numbers, not 3"):
        read_vectors(path, limit=4)


@pytest.mark.parametrize("header", ["7 3\n", "7 3 \r\n"])
def test_word2vec_header_is_understood(tmp_path: Path, header: str) -> None:
    plain = read_vectors(saved(tmp_path, GLOVE), limit=9)
    headed = read_vectors(saved(tmp_path, header + GLOVE.replace("\n", " \r\n"), "headed.vec"), limit=9)
    assert headed[0] == plain[0]
    assert headed[1].tobytes() == plain[1].tobytes()


def test_url_and_gzip_are_read_like_a_local_file(tmp_path: Path) -> None:
    expected = read_vectors(saved(tmp_path, GLOVE), limit=9)
    storage.write_atomic("memory://vectors/glove.txt", GLOVE.encode())
    packed = saved(tmp_path, gzip.compress(GLOVE.encode()), "glove.txt.gz")
    for path in ("memory://vectors/glove.txt", packed):
        words, matrix = read_vectors(path, limit=9)
        assert words == expected[0]
        assert matrix.tobytes() == expected[1].tobytes()


def test_first_row_of_a_repeated_word_stands_and_counts_once(tmp_path: Path) -> None:
    words, matrix = read_vectors(saved(tmp_path, "ab 1 1\nab 2 2\nAb 3 3\ncd 4 4\n"), limit=3)
    assert words == ["ab", "Ab", "cd"]
    assert matrix[:, 0].tolist() == [1, 3, 4]


def test_lines_whose_word_holds_spaces_are_passed_over(tmp_path: Path) -> None:
    path = saved(tmp_path, ". . 1 1\nab 2 2\nat name@domain.com 3 3\nmail me x 4 4\ncd 5 5\n")
    assert read_vectors(path, limit=9)[0] == ["ab", "cd"]


def test_file_is_never_held_in_memory_as_a_whole(tmp_path: Path) -> None:
    line = "19" + " 0.125" * 1000 + "\n"
    path = saved(tmp_path, line * 3000 + line.replace("19", "ab"))
    tracemalloc.start()
    try:
        assert read_vectors(path, limit=9)[0] == ["ab"]
        assert tracemalloc.get_traced_memory()[1] < 4_000_000 < Path(path).stat().st_size
    finally:
        tracemalloc.stop()


@given(
    st.lists(
        st.tuples(
            st.text(st.characters(categories=["L"]), min_size=2, max_size=8),
            st.lists(st.floats(-1e9, 1e9, width=32), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=20,
        unique_by=lambda pair: pair[0],
    ),
    st.booleans(),
)
@settings(deadline=None)
def test_what_was_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, list[float]]], header: bool
) -> None:
    text = f"{len(rows)} 3\n" * header
    text += "".join(f"{word} {' '.join(map(repr, numbers))}\n" for word, numbers in rows)
    words, matrix = read_vectors(saved(tmp_path_factory.mktemp("vectors"), text), limit=len(rows))
    assert words == [word for word, _ in rows]
    np.testing.assert_array_equal(matrix, np.array([numbers for _, numbers in rows], dtype=np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ab 1 2\ncd 1\n", "line 2 has 1 numbers, not 2"),
        ("ab 1 2\n19 1\n", "line 2 has 1 numbers, not 2"),
        ("ab 1 2\ncd 1 2 3\n", "line 2 has 3 numbers, not 2"),
        ("2 3\nab 1 2\n", "line 2 has 2 numbers, not 3"),
        ("ab 1 2\n\ncd 1 x\n", "line 3 holds what is not a number"),
        ("ab 1 2\ncd 1 2,5\n", "line 2 holds what is not a number"),
        ("ab 1 2\nef 1 2\ncd 1 nan\n", "line 3 holds NaN or infinity"),
        ("ab 1 2\ncd 1 1e99\n", "line 2 holds NaN or infinity"),
        ("ab\n", "line 1 has no vector"),
        ("ab\t1\t2\n", "line 1 has 0 numbers"),
        ("ab cd\n", "line 1 has no vector"),
        (b"ab 1 2\nc\xff 1 2\n", "line 2 is not UTF-8"),
        (b"PK\x03\x04\xff\xfe" + bytes(2000), "line 1 has no vector"),
        ("", "holds no vector of a word"),
        ("19 1 2\n", "holds no vector of a word"),
    ],
)
def test_broken_file_is_refused_with_its_name_and_line(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InputError, match=rf"vectors\.txt: {message}"):
        read_vectors(saved(tmp_path, content), limit=9)


def test_endless_line_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    path = saved(tmp_path, b"ab 1 2\n" + bytes(vectors.MAX_LINE_BYTES + 1))
    with pytest.raises(InputError, match="line 2 is longer than 1048576 bytes"):
        read_vectors(path, limit=9)


def test_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt: no such file"):
        read_vectors(str(tmp_path / "absent.txt"), limit=9)
    with pytest.raises(InputError, match=f"{tmp_path.name}: .*give a readable file"):
        read_vectors(str(tmp_path), limit=9)
    with pytest.raises(InputError, match=r"torn\.gz: .*give a readable file"):
        read_vectors(saved(tmp_path, gzip.compress(GLOVE.encode())[:-20], "torn.gz"), limit=9)
    with pytest.raises(InputError, match="limit is 0"):
        read_vectors(saved(tmp_path, GLOVE), limit=0)


def test_thousands_of_vectors_get_the_neighbours_that_comparing_every_pair_gives() -> None:
    rows = np.random.default_rng(0).standard_normal((3000, 10)).astype(np.float32)
    words = [f"{a}{b}{c}" for a in "abcdefghijklmnop" for b in "abcdefghijklmno" for c in "abcdefghijklmn"][
        :3000
    ]
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-cosines, axis=1)[:, :3]
    table = neighbour_table(words, rows, k=3)
    assert [table.lookup(word) for word in words] == [
        tuple(words[i] for i in row) for row in expected.tolist()
    ]
