from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ENCODERS, RECORDS, Records, content, documents_of, failing, json_lines, read, written

from tinyqa_ray.core import shards
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import formats, inputs, tables


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "stage") if request.param == "local" else f"memory://{uuid.uuid4().hex}/stage"


@settings(deadline=None, max_examples=25)
@given(records=RECORDS, sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 20)))
def test_rows_do_not_depend_on_the_sizes_of_files_and_groups(
    records: Records, sizes: tuple[int, int, int]
) -> None:
    with tempfile.TemporaryDirectory() as place, mock.patch.object(tables, "GROUP_CHARACTERS", sizes[2]):
        file = written(f"{place}/a.jsonl", json_lines(records))
        files = inputs.write_documents(file, f"{place}/made", rows_per_file=sizes[0])
        with mock.patch.object(tables, "FILE_CHARACTERS", sizes[1]):
            small = inputs.write_documents(file, f"{place}/small")
        assert read(files) == read(small) == documents_of(json_lines(records))
        assert all(pq.read_metadata(each).num_rows <= sizes[0] for each in files)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"id": 1}', "the text is missing"),
        (b'{"id": 1, "text": null}', "the text is missing"),
        (b'{"id": 1, "text": 7}', "the text is int, not a string"),
        (b'{"id": 1, "text": ["a"]}', "the text is list, not a string"),
        (b'{"id": 1, "text": " \\n\\u00a0"}', "the text is empty"),
        (b'{"id": 1, "text": "ab\\ud83d"}', "the text holds half a surrogate pair at character 2"),
        (b'{"id": 1, "text": "\xc3\xa9\xff"}', "the text is not UTF-8 at byte 2"),
    ],
)
def test_bad_document_is_a_row_with_an_error(line: bytes, error: str) -> None:
    good = b'{"id": 0, "text": "An owl."}\n'
    rows = documents_of(good + line + b"\n\n" + good.replace(b"0", b"2"))
    assert [(row["document_id"], row["text"]) for row in rows] == [
        ("0", "An owl."),
        ("1", None),
        ("2", "An owl."),
    ]
    assert [row["error"] for row in rows] == [None, error, None]


def test_ten_megabyte_document_is_kept_whole_and_apart(tmp_path: Path) -> None:
    long = "An owl. " * (10 << 17)
    records = [{"id": i, "text": long if i in (5, 6, 200) else f"Document {i}."} for i in range(300)]
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        file = written(f"{tmp_path}/{name}", ENCODERS[name](records))
        (made,) = inputs.write_documents(file, f"{tmp_path}/{name}-made")
        groups = pq.ParquetFile(made)
        sizes = [groups.metadata.row_group(i).num_rows for i in range(groups.num_row_groups)]
        assert sizes[:3] == [6, 1, shards.ROWS_PER_GROUP]
        assert max(sizes) == shards.ROWS_PER_GROUP
        assert [row["text"] for row in read([made])] == [record["text"] for record in records]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_interrupted_run_is_continued_to_the_same_bytes(folder: str, calls: int) -> None:
    records = [{"id": i, "text": f"Document {i}.", "question": f"Who is {i}?"} for i in range(10)]
    file = written(f"{folder}/a.jsonl", json_lines(records))

    def work(to: str) -> list[Any]:
        with mock.patch.object(inputs, "ROWS_PER_FILE", 4):
            return [
                inputs.write_documents(file, f"{to}/documents", 4),
                inputs.write_questions(file, f"{to}/questions"),
                inputs.write_pairs(file, f"{to}/pairs"),
            ]

    work(f"{folder}/whole")
    made = 0
    for _ in range(40):
        with failing(calls):
            try:
                again = work(f"{folder}/parts")
                break
            except KeyboardInterrupt:
                before = content(f"{folder}/parts")
                assert len(before) > made
                made = len(before)
    whole, parts = content(f"{folder}/whole"), content(f"{folder}/parts")
    assert [data for _, data in sorted(whole.items())] == [data for _, data in sorted(parts.items())]
    assert len(whole) == 4 + 4 + 7
    with mock.patch.object(formats, "json_rows", side_effect=AssertionError("read again")), failing(0):
        assert work(f"{folder}/parts") == again


def test_finished_files_are_not_written_again(tmp_path: Path) -> None:
    file = written(f"{tmp_path}/a.jsonl", json_lines([{"id": i, "text": "An owl."} for i in range(6)]))
    with failing(2), pytest.raises(KeyboardInterrupt):
        inputs.write_documents(file, f"{tmp_path}/made", 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "made").iterdir()}
    assert len(before) == 2
    inputs.write_documents(file, f"{tmp_path}/made", 2)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_repeated_id_is_refused_by_name_and_leaves_nothing(folder: str) -> None:
    records = [{"id": str(i), "text": "x"} for i in range(50)] + [
        {"id": 7, "text": "x"},
        {"id": 3, "text": "x"},
    ]
    file = written(f"{folder}/a.jsonl", json_lines(records))
    with pytest.raises(InputError, match=r"a\.jsonl: id '7' comes twice, in rows 8 and 51; make ids unique"):
        inputs.write_documents(file, f"{folder}/made", 9)
    assert content(f"{folder}/made") == {}


def test_file_of_another_cut_is_not_taken_for_finished(tmp_path: Path) -> None:
    file = written(f"{tmp_path}/a.jsonl", json_lines([{"id": i, "text": "An owl."} for i in range(6)]))
    with failing(1), pytest.raises(KeyboardInterrupt):
        inputs.write_documents(file, f"{tmp_path}/made", 2)
    with pytest.raises(InputError, match=r"part-000000\.parquet: is of another run; delete"):
        inputs.write_documents(file, f"{tmp_path}/made", 3)


def test_file_of_long_documents_is_closed_before_it_grows(tmp_path: Path) -> None:
    file = written(f"{tmp_path}/a.jsonl", json_lines([{"id": i, "text": "x" * 100} for i in range(10)]))
    with mock.patch.object(tables, "FILE_CHARACTERS", 300):
        files = inputs.write_documents(file, f"{tmp_path}/made")
    assert [pq.read_metadata(each).num_rows for each in files] == [3, 3, 3, 1]
