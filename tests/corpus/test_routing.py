from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import storage
from tinyqa_ray.corpus import ids, inputs, routing, tables


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    storage.write_atomic(str(path), "".join(json.dumps(record) + "\n" for record in records).encode())
    return str(path)


def normalised(place: Path, documents: list[str], asked: list[str]) -> tuple[list[str], inputs.Questions]:
    texts = lines(place / "d.jsonl", [{"id": each, "text": "An owl."} for each in documents])
    questions = lines(place / "q.jsonl", [{"question": "Who?", "document_id": each} for each in asked])
    return (
        inputs.write_documents(texts, str(place / "documents"), rows_per_file=3),
        inputs.write_questions(questions, str(place / "questions")),
    )


NAMES = st.sampled_from([*"abcdefgh", "é", "📚", "a\0", "\0a"])


# With few hashes, most rows collide.
@pytest.mark.parametrize("hashes", [1, 3, 0])
@settings(deadline=None, max_examples=25)
@given(
    documents=st.lists(NAMES, min_size=1, unique=True),
    asked=st.lists(NAMES, min_size=1, max_size=20),
    run_rows=st.integers(1, 9),
)
def test_question_reaches_its_own_document_whatever_collides(
    hashes: int, documents: list[str], asked: list[str], run_rows: int
) -> None:
    def colliding(key: ids.Key) -> bytes:
        return bytes([len(key[0].encode()) % hashes] * 8) if hashes else real(key)

    real = ids._hash
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(ids, "_hash", colliding),
        mock.patch.multiple(routing, RUN_ROWS=run_rows, _READ_ROWS=2),
        mock.patch.multiple(tables, ASKED_PER_GROUP=2),
    ):
        files, questions = normalised(Path(place), documents, asked)
        runs = routing.route(questions.files, files, f"{place}/asked")
        for run in runs:
            table = pq.read_table(run)
            keys = list(zip(table["row"].to_pylist(), table["question_row"].to_pylist(), strict=True))
            assert keys == sorted(keys)
        found = [row for run in runs for row in pq.read_table(run).to_pylist()]
        assert sorted(row["question_row"] for row in found) == list(range(len(asked)))
        for row in found:
            name = asked[row["question_row"]]
            assert row["document_id"] == name
            assert row["row"] == (documents.index(name) if name in documents else -1)
            absent = f"document {name!r} is not in the corpus"
            assert row["error"] == (None if name in documents else absent)
        for first, last in ((-1, -1), (0, 2), (1, 1), (3, 99), (-1, 99)):
            got = tables.asked_of(runs, first, last)
            assert got.schema.names == tables.ASKED.names
            expected = sorted(
                (row for row in found if first <= row["row"] <= last),
                key=lambda row: (row["row"], row["question_row"]),
            )
            assert got.to_pylist() == expected


@pytest.mark.parametrize("hashes", [1, 4, 0])
@settings(deadline=None, max_examples=25)
@given(names=st.lists(NAMES, min_size=1, max_size=16), compared=st.integers(1, 4))
def test_first_repeat_is_found_whatever_collides(hashes: int, names: list[str], compared: int) -> None:
    def colliding(key: ids.Key) -> bytes:
        return bytes([len(key[0].encode()) % hashes] * 8) if hashes else real(key)

    real = ids._hash
    first = next(((names.index(name), i) for i, name in enumerate(names) if name in names[:i]), None)
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.multiple(ids, _hash=colliding, _COMPARED=compared, _BATCH=3),
    ):
        tables.write(f"{place}/a.parquet", pa.table({"name": names[:5]}), 2)
        tables.write(f"{place}/b.parquet", pa.table({"name": names[5:]}), 2)
        index = ids.IdIndex([f"{place}/a.parquet", f"{place}/b.parquet"], ["name"])
        assert index.first_repeat() == first
        assert index.keys(np.arange(len(names))) == [(name,) for name in names]
        assert index.rows([(name,) for name in names]).tolist() == [names.index(name) for name in names]


def test_keys_of_several_columns_do_not_run_into_each_other(tmp_path: Path) -> None:
    tables.write(f"{tmp_path}/a.parquet", pa.table({"a": ["x\0", "x"], "b": ["y", "\0y"]}), 2)
    index = ids.IdIndex([f"{tmp_path}/a.parquet"], ["a", "b"])
    assert index.first_repeat() is None


def test_index_takes_sixteen_bytes_a_row(tmp_path: Path) -> None:
    rows = 1000
    tables.write(f"{tmp_path}/a.parquet", pa.table({"name": [f"document-{i}" for i in range(rows)]}), 64)
    index = ids.IdIndex([f"{tmp_path}/a.parquet"], ["name"])
    held = sum(value.nbytes for value in vars(index).values() if isinstance(value, np.ndarray))
    assert held <= 16 * rows + 8


def test_bad_question_keeps_its_own_error_and_its_row(tmp_path: Path) -> None:
    texts = lines(tmp_path / "d.jsonl", [{"id": "a", "text": "An owl."}])
    asked = [{"question": None, "document_id": "a"}, {"question": "", "document_id": "b"}]
    questions = inputs.write_questions(lines(tmp_path / "q.jsonl", asked), f"{tmp_path}/questions")
    documents = inputs.write_documents(texts, f"{tmp_path}/documents")
    runs = routing.route(questions.files, documents, f"{tmp_path}/asked")
    rows = tables.asked_of(runs, -1, 0).to_pylist()
    assert [(row["row"], row["error"]) for row in rows] == [
        (-1, "the question is empty"),
        (0, "the question is missing"),
    ]


def test_only_the_groups_of_the_rows_asked_for_are_read(tmp_path: Path) -> None:
    names = [f"d{i}" for i in range(40)]
    documents, questions = normalised(tmp_path, names, names[::-1])
    with mock.patch.object(tables, "ASKED_PER_GROUP", 4):
        runs = routing.route(questions.files, documents, f"{tmp_path}/asked")
    read = pq.ParquetFile.read_row_groups
    seen: list[list[int]] = []

    def counted(self: Any, groups: list[int], **options: Any) -> Any:
        seen.append(groups)
        return read(self, groups, **options)

    with mock.patch.object(pq.ParquetFile, "read_row_groups", counted):
        assert tables.asked_of(runs, 9, 12)["question_row"].to_pylist() == [30, 29, 28, 27]
        assert tables.asked_of(runs, 50, 60).num_rows == 0
    assert seen == [[2, 3], []]


def test_no_runs_hold_no_questions() -> None:
    assert tables.asked_of([], 0, 9) == tables.ASKED.empty_table()


def test_further_columns_of_runs_are_kept(tmp_path: Path) -> None:
    table = pa.table({field.name: pa.nulls(2, field.type) for field in tables.ASKED})
    table = table.set_column(0, "row", pa.array([1, 2])).append_column("score", pa.array([0.5, 0.25]))
    tables.write(f"{tmp_path}/run.parquet", table, 2)
    assert tables.asked_of([f"{tmp_path}/run.parquet"], 2, 2)["score"].to_pylist() == [0.25]


@pytest.mark.parametrize("calls", range(5))
def test_interrupted_routing_is_continued_to_the_same_bytes(tmp_path: Path, calls: int) -> None:
    documents, questions = normalised(tmp_path, list("abc"), list("cabxabcab"))
    write, made = storage.write_atomic, iter(range(calls))

    def dying(path: str, data: Any) -> None:
        if next(made, None) is None:
            raise KeyboardInterrupt
        write(path, data)

    with mock.patch.multiple(routing, RUN_ROWS=3, _READ_ROWS=2):
        runs = routing.route(questions.files, documents, f"{tmp_path}/whole")
        assert len(runs) == 3
        try:
            with mock.patch.object(storage, "write_atomic", dying):
                routing.route(questions.files, documents, f"{tmp_path}/parts")
        except KeyboardInterrupt:
            assert calls < 4
        routing.route(questions.files, documents, f"{tmp_path}/parts")
    whole, parts = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "parts")
    )
    assert whole == parts
    with mock.patch.object(ids.IdIndex, "__init__", side_effect=AssertionError("routed again")):
        again = routing.route(questions.files, documents, f"{tmp_path}/whole")
    assert again == runs
