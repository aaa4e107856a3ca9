from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.pairs import pairs_of
from tinyqa_ray.answer.plan import Unit, plan, unit_of
from tinyqa_ray.corpus import tables


def corpus_of(folder: str, sizes: list[int], asked: list[tuple[int, int]] | None, questions: int) -> Corpus:
    """Documents of so many characters (0: unreadable), and who is asked: pairs of row and question."""
    documents = [
        {"row": row, "document_id": f"d{row}", "text": "x" * size or None, "error": None if size else "bad"}
        for row, size in enumerate(sizes)
    ]
    files = (f"{folder}/d0.parquet", f"{folder}/d1.parquet")
    half = len(sizes) // 2
    for file, part in zip(files, (documents[:half], documents[half:]), strict=True):
        pq.write_table(pa.Table.from_pylist(part, schema=tables.DOCUMENTS), file, row_group_size=2)
    rows = [
        {"question_row": row, "question_id": f"q{row}", "question": f"What is {row}?"}
        for row in range(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=tables.QUESTIONS), f"{folder}/q.parquet")
    runs: tuple[str, ...] = ()
    if asked is not None:
        made = [{**rows[question], "row": row} for row, question in sorted(asked)]
        pq.write_table(
            pa.Table.from_pylist(made, schema=tables.ASKED), f"{folder}/r.parquet", row_group_size=3
        )
        runs = (f"{folder}/r.parquet",)
    return Corpus(
        documents=files,
        questions=(f"{folder}/q.parquet",),
        asked=runs,
        merged=asked is None,
        question_rows=questions,
    )


SIZES = st.lists(st.integers(0, 30), min_size=2, max_size=12)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), sizes=SIZES, most_pairs=st.integers(1, 20), most_bytes=st.integers(1, 80))
def test_units_hold_every_pair_that_is_asked_once_and_no_more_than_they_may(
    data: st.DataObject, sizes: list[int], most_pairs: int, most_bytes: int
) -> None:
    places = st.tuples(st.integers(-1, len(sizes) - 1), st.integers(0, 6))
    asked = data.draw(st.lists(places, unique=True, max_size=30))
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(folder, sizes, asked, 7)
        made = plan(corpus, most_pairs, most_bytes)
        found = []
        for unit in made.units:
            pairs = pairs_of(unit, corpus)
            assert len(pairs) == unit.pairs <= most_pairs
            found += [(pair.row, pair.question_row) for pair in pairs]
    assert sorted(found) == sorted(asked)
    assert found == sorted(found)
    assert (made.documents, made.unreadable) == (len(sizes), sizes.count(0))


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, questions=st.integers(1, 9), most_pairs=st.integers(1, 30), most_bytes=st.integers(1, 80))
def test_units_ask_every_question_of_every_readable_document_once(
    sizes: list[int], questions: int, most_pairs: int, most_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(folder, sizes, None, questions)
        units = plan(corpus, most_pairs, most_bytes).units
        found = []
        for unit in units:
            pairs = pairs_of(unit, corpus)
            assert len(pairs) == unit.pairs <= most_pairs
            found += [(pair.row, pair.question_row) for pair in pairs]
    readable = [row for row, size in enumerate(sizes) if size]
    assert sorted(found) == [(row, question) for row in readable for question in range(questions)]


def test_cost_of_a_long_document_that_many_questions_are_asked_of_is_whole(tmp_path: Path) -> None:
    length, questions = 3_000_000, 800
    corpus = corpus_of(
        str(tmp_path), [length, 0], [(0, question) for question in range(questions)], questions
    )
    (unit,) = plan(corpus, 1000).units
    assert (unit.pairs, unit.size // questions) == (questions, pytest.approx(length, rel=0.001))


def test_unit_survives_the_file_that_carries_it() -> None:
    unit = Unit(3, "file", 1, 2, 0, 9, 20, 1 << 40)
    assert unit_of(Unit.table([unit])) == unit
