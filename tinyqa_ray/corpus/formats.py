"""Reads Parquet, JSON lines, CSV, TSV and plain text row by row in bounded memory."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError

Row = tuple[str, dict[str, Any]]
"""The place of a row, for messages, and its values by column.

A byte that is not UTF-8 is read as half a surrogate pair (PEP 383), which valid Unicode text never holds.
"""

LONGEST = 1 << 28
"""Most bytes of a line, field or text file; longer ones are refused, so that memory stays bounded."""
_READ = 1 << 20
_LOOKED_AT = 100
"""How many JSON rows are read to find the columns: a single row may leave out its nulls."""
_BATCH_BYTES = 1 << 23
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value that cannot be read."""

    reason: str


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of the file system, of a store or of Arrow into an ``InputError`` that names ``path``."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        mistake = (
            f"{path}: cannot be read ({reason}); give a whole, readable file, and credentials if its store "
            "asks for them"
        )
        raise faults.refused(path, error, mistake) from None


@contextlib.contextmanager
def _stream(file: str) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked if its name ends in ``.gz``."""
    filesystem, inner = storage.resolve(file)
    with readable(file), filesystem.open_input_stream(inner, compression=None) as packed:
        is_packed = file.lower().endswith(".gz")
        with pa.CompressedInputStream(packed, "gzip") if is_packed else packed as stream:
            yield io.BufferedReader(stream, _READ)


def parquet_names(file: str) -> list[str]:
    """Names of the columns, read from the footer of the file."""
    with _parquet(file) as parquet:
        return list(parquet.schema_arrow.names)


def parquet_rows(file: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a Parquet file; other types than strings, numbers and nested ones become Arrow's text."""
    number = 0
    with _parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            bytes_a_row = about.total_byte_size // max(1, about.num_rows)
            rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, bytes_a_row)))
            for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns):
                names = batch.schema.names
                for values in zip(*map(_values, batch.columns), strict=True):
                    number += 1
                    yield f"{file}: row {number}", dict(zip(names, values, strict=True))


@contextlib.contextmanager
def _parquet(file: str) -> Iterator[pq.ParquetFile]:
    filesystem, inner = storage.resolve(file)
    with readable(file), filesystem.open_input_file(inner) as source:
        # This reads a large row group page by page; pre-buffering would hold all of it in memory.
        yield pq.ParquetFile(source, buffer_size=_READ, pre_buffer=False)


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_nested(kind):
        return [_nested(value) for value in column]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return list(column.to_pylist())
    try:
        # Cast to bytes first: Arrow does not check that the strings of a file are UTF-8.
        texts = column.cast(pa.large_binary())
    except pa.ArrowException:
        texts = column.cast(pa.string()).cast(pa.large_binary())
    return [None if text is None else text.decode("utf-8", "surrogateescape") for text in texts.to_pylist()]


def _nested(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return None  # text that is not UTF-8, or a time that Python cannot represent


def json_names(file: str) -> list[str]:
    """Keys of the first rows, in order of appearance."""
    names: dict[str, None] = {}
    rows = json_rows(file)
    for _, (_, row) in zip(range(_LOOKED_AT), rows, strict=False):
        names.update(dict.fromkeys(row))
    return list(names)


def json_rows(file: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a file with one JSON object per line; blank lines are skipped."""
    with _stream(file) as stream:
        number = 0
        while line := stream.readline(LONGEST + 1):
            number += 1
            where = f"{file}: line {number}"
            _refuse_long(len(line), where)
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield where, _object(line, where)


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        if line.lstrip().startswith(b"[") and line.rstrip().endswith((b"[", b",")):
            raise InputError(f"{where}: begins a JSON list; give one object a line") from None
        raise InputError(f"{where}: not JSON ({error}); give one object a line") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: is a JSON {type(value).__name__}; give one object a line")
    return value


def csv_names(file: str) -> list[str]:
    """Column names, from the first line."""
    with _stream(file) as stream:
        return next((names for _, names in _records(file, stream)), [])


def csv_rows(file: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a CSV or TSV file with a header; all values are text; a short row lacks its last columns."""
    with _stream(file) as stream:
        records = _records(file, stream)
        _, names = next(records, ("", []))
        for where, values in records:
            if len(values) > len(names):
                raise InputError(
                    f"{where}: has {len(values)} fields, the header {len(names)}; quote fields that hold a "
                    "separator"
                )
            # Not strict: a row may be shorter than the header.
            yield where, dict(zip(names, values, strict=False))


def _records(file: str, stream: io.BufferedReader) -> Iterator[tuple[str, list[str]]]:
    """The place where each record begins, and its fields; blank lines are skipped."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
    stem = file.lower().removesuffix(".gz")
    # Strict: otherwise a quote that is never closed silently swallows the rest of the file.
    records = csv.reader(_lines(file, text), "excel-tab" if stem.endswith(".tsv") else "excel", strict=True)
    while True:
        where = f"{file}: line {records.line_num + 1}"
        try:
            values = next(records, None)
        except csv.Error as error:
            raise InputError(f"{where}: not CSV ({error}); check its quotes") from None
        if values is None:
            return
        if values:
            yield where, values


def _lines(file: str, text: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := text.readline(LONGEST + 1):
        number += 1
        _refuse_long(len(line), f"{file}: line {number}")
        yield line


def _refuse_long(length: int, where: str) -> None:
    if length > LONGEST:
        raise InputError(f"{where}: is longer than {LONGEST >> 20} MiB; give one object or record a line")


def text_names(folder: str) -> list[str]:
    """Columns of text files: an id, which is the path within the folder, and the text."""
    return ["id", "text"]


def text_rows(folder: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """A row per ``.txt`` file of a folder, or for one file; line ends stay, a byte order mark does not."""
    files = [folder]
    if storage.kind(folder) == "folder":
        files = visible(folder, storage.list_files(folder, ".txt", recursive=True))
    within = folder.rstrip("/") + "/" if files != [folder] else folder[: folder.rfind("/") + 1]
    for file in files:
        with _stream(file) as stream:
            data = stream.read(LONGEST + 1)
        text: str | Unreadable = Unreadable(f"is longer than {LONGEST >> 20} MiB")
        if len(data) <= LONGEST:
            text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
        yield file, {"id": file.removeprefix(within), "text": text}


def visible(folder: str, files: Sequence[str]) -> list[str]:
    """The files that are not hidden: no part of the path within the folder begins with a dot."""
    start = len(folder.rstrip("/"))
    return [file for file in files if "/." not in file[start:]]


NAMES: dict[str, Callable[[str], list[str]]] = {
    "parquet": parquet_names,
    "jsonl": json_names,
    "csv": csv_names,
    "txt": text_names,
}
ROWS: dict[str, Callable[[str, Sequence[str] | None], Iterator[Row]]] = {
    "parquet": parquet_rows,
    "jsonl": json_rows,
    "csv": csv_rows,
    "txt": text_rows,
}
