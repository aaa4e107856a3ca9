from __future__ import annotations

import gzip
import io
import json
import re
import uuid
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from samples import ENCODERS, RECORDS, Records, content, documents_of, parquet, read, written

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import formats, inputs, sources


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "stage") if request.param == "local" else f"memory://{uuid.uuid4().hex}/stage"


@pytest.mark.parametrize("name", ENCODERS)
@settings(deadline=None, max_examples=25)
@given(records=RECORDS)
def test_documents_come_back_from_every_format(name: str, records: Records) -> None:
    rows = documents_of(ENCODERS[name](records), name)
    assert [row["row"] for row in rows] == list(range(len(records)))
    assert [row["document_id"] for row in rows] == [record["id"] for record in records]
    for row, record in zip(rows, records, strict=True):
        empty = not record["text"].strip()
        assert row["text"] == (None if empty else record["text"])
        assert row["error"] == ("the text is empty" if empty else None)
        assert json.loads(row["meta"]) == {"tag": record["tag"]}


def test_folder_of_files_is_read_in_the_order_of_names(folder: str) -> None:
    for name, number in (("b/x.parquet", 2), ("a.parquet", 1), ("c.parquet", 3), (".hidden/d.parquet", 4)):
        written(f"{folder}/in/{name}", parquet([{"id": number, "content": "An owl."}]))
    written(f"{folder}/in/_SUCCESS", b"")
    rows = read(inputs.write_documents(f"{folder}/in", f"{folder}/made"))
    assert [row["document_id"] for row in rows] == ["1", "2", "3"]
    assert [row["meta"] for row in rows] == [None] * 3


def test_text_files_are_documents_named_by_their_path(folder: str) -> None:
    texts = {"b.txt": b"Two\r\nlines\n", "a.txt": b"\xef\xbb\xbfAn owl.", "deep/c.txt": b"x\xc3\xff"}
    for name, data in (texts | {"notes.md": b"no", "d.txt": b" \n"}).items():
        written(f"{folder}/in/{name}", data)
    rows = read(inputs.write_documents(f"{folder}/in/", f"{folder}/made"))
    found = {row["document_id"]: (row["text"], row["error"]) for row in rows}
    assert found == {
        "a.txt": ("An owl.", None),
        "b.txt": ("Two\r\nlines\n", None),
        "d.txt": (None, "the text is empty"),
        "deep/c.txt": (None, "the text is not UTF-8 at byte 1"),
    }


def test_text_file_beyond_the_limit_is_an_error_and_not_held(tmp_path: Path) -> None:
    written(f"{tmp_path}/in/a.txt", b"x" * (1 << 20))
    written(f"{tmp_path}/in/b.txt", b"x" * ((1 << 20) + 1))
    with mock.patch.object(formats, "LONGEST", 1 << 20):
        good, bad = read(inputs.write_documents(f"{tmp_path}/in", f"{tmp_path}/made"))
    assert (len(good["text"]), good["error"]) == (1 << 20, None)
    assert (bad["text"], bad["error"]) == (None, "the text is longer than 1 MiB")


def test_text_of_parquet_that_is_not_utf8_is_a_row_with_an_error() -> None:
    texts = pa.array([b"An owl.", b"\xe9t\xe9", None]).cast(pa.binary())
    unchecked = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    for column in (texts, unchecked):
        sink = io.BytesIO()
        pq.write_table(pa.table({"document_id": [1, 2, 3], "context": column, "other": column}), sink)
        rows = documents_of(sink.getvalue(), "a.parquet")
        assert [row["text"] for row in rows] == ["An owl.", None, None]
        assert [row["error"] for row in rows] == [
            None,
            "the text is not UTF-8 at byte 0",
            "the text is missing",
        ]
        assert json.loads(rows[0]["meta"]) == {"other": "An owl."}


def test_columns_of_any_type_are_carried_as_json() -> None:
    sink = io.BytesIO()
    table = pa.table(
        {
            "id": pa.array(["a"]).dictionary_encode(),
            "text": pa.array(["An owl."], pa.large_string()),
            "when": pa.array([1], pa.timestamp("ns")),
            "far": pa.array([[10**16]], pa.list_(pa.timestamp("ms"))),
            "number": [float("nan")],
            "vector": [[0.5, float("inf")]],
            "tree": [{"a": [1, None], "b": "é"}],
            "raw": [b"\xff"],
            "flag": [True],
            "nothing": pa.nulls(1),
        }
    )
    pq.write_table(table, sink)
    (row,) = documents_of(sink.getvalue(), "a.parquet")
    assert json.loads(row["meta"]) == {
        "when": "1970-01-01 00:00:00.000000001",
        "far": None,
        "number": None,
        "vector": [0.5, None],
        "tree": {"a": [1, None], "b": "é"},
        "raw": "\udcff",
        "flag": True,
        "nothing": None,
    }
    (row,) = documents_of('{"id": "a", "text": "x", "title": "Été", "n": [1e999]}'.encode())
    assert row["meta"] == '{"title": "\\u00c9t\\u00e9", "n": [null]}'
    (row,) = documents_of('{"id": "a", "text": "x", "title": "Été"}'.encode())
    assert row["meta"] == '{"title": "Été"}'


@pytest.mark.parametrize(
    ("name", "data", "complaint"),
    [
        ("a.jsonl", b"", "holds no documents"),
        ("a.csv", b"id,text\n", "holds no documents"),
        (
            "a.jsonl",
            b'{"id": 1, "body": "x"}\n',
            r"lacks a column text or content or context; found 'id', 'body'$",
        ),
        (
            "a.jsonl",
            b'{"data": [], "version": 2}\n',
            "lacks a column id or document_id; found 'data', 'version'$",
        ),
        ("a.csv", b"1,An owl.\n2,Rye.\n", "found '1', 'An owl.'; the first line must name the columns$"),
        ("a.csv", b"id,text,id\n1,x,2\n", "has the column 'id' twice"),
        ("a.csv", b"id,text\n1,x\n2,a,b\n", "line 3: has 3 fields, the header 2; quote fields"),
        ("a.csv", b'id,text\n1,"a\nb"\n2,"x\n3,y\n', "line 4: not CSV .* check its quotes"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": 2\n', "line 2: not JSON .*; give one object a line"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n[1]\n', "line 2: is a JSON list; give one object a line"),
        ("a.json", b'[\n{"id": 1, "text": "x"}\n]\n', "line 1: begins a JSON list; give one object a line"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n' + b'{"a":' + b"[" * 100_000 + b"\n", "line 2: not JSON"),
        ("a.jsonl", b'{"id": 1, "text": "x"}\n{"text": "y"}\n', r"a\.jsonl: line 2: id is missing"),
        ("a.jsonl", b'{"id": "", "text": "x"}\n', r"line 1: id is missing"),
        ("a.jsonl", b'{"id": 1.5, "text": "x"}\n', r"id is 1\.5; give a string or a whole number"),
        ("a.jsonl", b'{"id": true, "text": "x"}\n', "id is True"),
        ("a.jsonl", b'{"id": "\\ud83d", "text": "x"}\n', "id holds half a surrogate pair"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1, "text": "x"}\n' * 99)[:40], "cannot be read .*[Tt]runcated"),
        ("a.jsonl.gz", b'{"id": 1, "text": "x"}\n', "cannot be read"),
        ("a.parquet", b"PAR1 nothing PAR1", "cannot be read"),
        ("a.parquet", parquet([{"id": 1, "text": "x"}])[:-9], r"a\.parquet: cannot be read \(Parquet magic"),
        ("a.parquet", b"", "cannot be read"),
        ("a.xlsx", b"x", "holds no data, found a.xlsx; give Parquet, JSONL, CSV"),
    ],
)
def test_file_that_cannot_be_used_is_refused_in_one_line(
    folder: str, name: str, data: bytes, complaint: str
) -> None:
    file = written(f"{folder}/{name}", data)
    with pytest.raises(InputError, match=complaint) as refused:
        inputs.write_documents(file, f"{folder}/made")
    assert str(refused.value).startswith(file)
    assert "\n" not in str(refused.value)
    assert content(f"{folder}/made") == {}


def test_truncated_parquet_is_refused_before_the_files_ahead_of_it_are_read(tmp_path: Path) -> None:
    good = parquet([{"id": 1, "text": "x"}])
    written(f"{tmp_path}/in/a.parquet", good)
    bad = written(f"{tmp_path}/in/b.parquet", good[: len(good) // 2])
    read_rows = mock.patch.dict(formats.ROWS, {"parquet": mock.Mock(side_effect=AssertionError)})
    with read_rows, pytest.raises(InputError, match=f"^{re.escape(bad)}: cannot be read"):
        inputs.write_documents(f"{tmp_path}/in", f"{tmp_path}/made")


def test_parquet_with_a_broken_page_is_refused(tmp_path: Path) -> None:
    data = bytearray(parquet([{"id": i, "text": f"An owl {i}."} for i in range(9)]))
    data[4:60] = bytes(56)
    file = written(f"{tmp_path}/a.parquet", bytes(data))
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read"):
        inputs.write_documents(file, f"{tmp_path}/made")


def test_absent_and_mixed_and_empty_folders_are_refused(folder: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        inputs.write_documents(f"{folder}/none", f"{folder}/made")
    written(f"{folder}/in/a.txt", b"x")
    written(f"{folder}/in/b.csv", b"id,text\n")
    with pytest.raises(InputError, match="holds files of csv, txt; give a folder of one format"):
        inputs.write_documents(f"{folder}/in", f"{folder}/made")
    written(f"{folder}/notes/a.md", b"x")
    with pytest.raises(InputError, match=r"holds no data, found a\.md"):
        inputs.write_documents(f"{folder}/notes", f"{folder}/made")


def test_store_without_credentials_is_refused_in_one_line(tmp_path: Path) -> None:
    denied = OSError("When getting information for key 'x' in bucket 'b':\nAWS Error ACCESS_DENIED")
    with (
        mock.patch.object(storage, "kind", side_effect=denied),
        pytest.raises(InputError, match=r"^s3://b/x: cannot be read \(.*ACCESS_DENIED\); .*credentials"),
    ):
        sources.find("s3://b/x")


def test_line_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b'{"id": 1, "text": "x"}\n{"id": 2'), ("a.csv", b"id,text\n1,x\n2,")):
        file = written(f"{tmp_path}/{name}", data + b"x" * 2000)
        with (
            mock.patch.object(formats, "LONGEST", 1000),
            pytest.raises(InputError, match=r"line \d: is longer than"),
        ):
            inputs.write_documents(file, f"{tmp_path}/made")
