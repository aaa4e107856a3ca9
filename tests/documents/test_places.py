from __future__ import annotations

import pyarrow as pa

from tinyqa_ray.documents.places import PAGES, PIECES, Box, Page, Piece, Places

# "ab cdef" on one line of page 1, "gh" on the next, "ij" on page 2; the text is "ab cdef gh\n\nij".
PLACES = Places(
    [Page(1, 0, 10, 200.0, 100.0), Page(2, 12, 14, 200.0, 100.0)],
    [
        Piece(0, 2, 10.0, 20.0, 20.0, 30.0),
        Piece(3, 7, 23.0, 20.0, 43.0, 30.0),
        Piece(8, 10, 10.0, 35.0, 20.0, 45.0),
        Piece(12, 14, 10.0, 20.0, 20.0, 30.0),
    ],
)


def test_words_of_a_line_have_one_box_and_each_line_its_own() -> None:
    assert PLACES.boxes(0, 7) == [Box(1, 10.0, 20.0, 43.0, 30.0)]
    assert PLACES.boxes(0, 10) == [Box(1, 10.0, 20.0, 43.0, 30.0), Box(1, 10.0, 35.0, 20.0, 45.0)]
    assert PLACES.boxes(8, 14) == [Box(1, 10.0, 35.0, 20.0, 45.0), Box(2, 10.0, 20.0, 20.0, 30.0)]


def test_part_of_a_word_has_its_part_of_the_box() -> None:
    assert PLACES.boxes(4, 6) == [Box(1, 28.0, 20.0, 38.0, 30.0)]
    assert PLACES.boxes(1, 4) == [Box(1, 15.0, 20.0, 28.0, 30.0)]


def test_space_between_words_has_no_box() -> None:
    assert PLACES.boxes(2, 3) == PLACES.boxes(10, 12) == []


def test_page_is_that_of_the_first_character() -> None:
    assert [PLACES.page(at) for at in (0, 9, 12, 13)] == [1, 1, 2, 2]
    assert Places(()).page(0) is None
    assert Places(()).boxes(0, 10) == []


def test_places_come_back_from_a_table() -> None:
    pages, pieces = PLACES.to_arrow()
    table = pa.table(
        [pa.array([pages, None], PAGES), pa.array([pieces.to_pylist(), None], PIECES)],
        names=["pages", "pieces"],
    )
    back, none = (Places.from_arrow(table["pages"][row], table["pieces"][row]) for row in (0, 1))
    assert back.pages == PLACES.pages
    assert back.boxes(1, 14) == PLACES.boxes(1, 14)
    assert none.pages == ()
    assert none.boxes(0, 9) == []
