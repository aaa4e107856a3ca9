"""Inputs in every format, and what is made of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tinyqa_ray.core import storage
from tinyqa_ray.corpus import inputs

Records = list[dict[str, Any]]


def written(path: str, data: bytes) -> str:
    """A file of just these bytes: by its name alone, Arrow would pack them."""
    filesystem, inner = storage.resolve(path)
    filesystem.create_dir(inner.rpartition("/")[0], recursive=True)
    with filesystem.open_output_stream(inner, compression=None) as sink:
        sink.write(data)
    return path


def json_lines(records: Records, **options: Any) -> bytes:
    return "".join(json.dumps(record, **options) + "\n" for record in records).encode()


def delimited(records: Records, delimiter: str) -> bytes:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(records[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


def parquet(records: Records) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=3)
    return sink.getvalue()


ENCODERS: dict[str, Callable[[Records], bytes]] = {
    "a.parquet": parquet,
    "a.jsonl": json_lines,
    "a.json": lambda records: b"\xef\xbb\xbf" + json_lines(records, ensure_ascii=False),
    "a.ndjson.gz": lambda records: gzip.compress(json_lines(records)),
    "a.csv": lambda records: delimited(records, ","),
    "a.tsv": lambda records: delimited(records, "\t"),
    "a.csv.gz": lambda records: gzip.compress(delimited(records, ",")),
}


def read(files: list[str] | tuple[str, ...]) -> Records:
    return [row for file in files for row in pq.read_table(io.BytesIO(storage.read_bytes(file))).to_pylist()]


def documents_of(data: bytes, name: str = "a.jsonl") -> Records:
    with tempfile.TemporaryDirectory() as place:
        return read(inputs.write_documents(written(f"{place}/{name}", data), f"{place}/made"))


def content(folder: str) -> dict[str, bytes]:
    return {file: storage.read_bytes(file) for file in storage.list_files(folder, recursive=True)}


def failing(calls: int) -> Any:
    """``storage.write_atomic``, dead after some calls."""
    real, made = storage.write_atomic, iter(range(calls))

    def write(path: str, data: Any) -> None:
        if next(made, None) is None:
            raise KeyboardInterrupt
        real(path, data)

    return mock.patch.object(storage, "write_atomic", write)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
RECORDS = st.lists(
    st.fixed_dictionaries({"id": TEXT.filter(bool), "text": TEXT, "tag": TEXT}),
    min_size=1,
    max_size=9,
    unique_by=lambda record: record["id"],
)
