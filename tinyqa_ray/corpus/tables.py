"""Parquet files of a corpus: their columns, and writing and reading them in bounded pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

DOCUMENTS = pa.schema(
    [
        pa.field("row", pa.int64()),  # from 0, over all files, in input order
        pa.field("document_id", pa.string()),
        pa.field("text", pa.large_string()),  # null: there is an error
        pa.field("meta", pa.string()),  # JSON of the other columns; null: there are none
        pa.field("error", pa.string()),  # null: fine
    ]
)
QUESTIONS = pa.schema(
    [
        pa.field("question_row", pa.int64()),  # from 0, over all files, in input order
        pa.field("question_id", pa.string()),
        pa.field("question", pa.string()),  # null: there is an error
        pa.field("document_id", pa.string()),  # null: every document is asked
        pa.field("error", pa.string()),  # null: fine
    ]
)
ASKED = pa.schema([DOCUMENTS.field("row"), *QUESTIONS])
"""A question and the row of its document; row -1 and an error if the document does not exist."""

FILES = "_FILES.json"
"""Written into a folder last; marks its tables as complete."""
ASKED_PER_GROUP = 1024
"""Rows in a row group of questions."""
GROUP_CHARACTERS = 1 << 23
"""Characters at which a row group is closed, even if it has few rows."""
FILE_CHARACTERS = 1 << 26
"""Characters at which a file is closed; a file is held in memory, compressed, until it is whole."""
_PIECE = 1 << 22


class Parts:
    """Writes rows one by one to ``part-000000.parquet`` and so on; each file is whole or absent.

    Which rows a file holds depends on the rows alone. A file that an earlier, killed call wrote is kept,
    not written again. In a ``with`` block, an ``InputError`` deletes all of the files.
    """

    def __init__(
        self, folder: str, schema: pa.Schema, rows_per_group: int, rows_per_file: int, *, stem: str = "part"
    ) -> None:
        self.folder, self.schema, self.stem = folder, schema, stem
        self.rows_per_group, self.rows_per_file = rows_per_group, rows_per_file
        self.rows = 0
        self.files: list[str] = []
        self._group: list[tuple[Any, ...]] = []
        self._group_characters = self._file_rows = self._file_characters = 0
        self._sink: Any = None
        self._writer: Any = None

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, InputError):
            for file in storage.list_files(self.folder, ".parquet"):
                if file.rsplit("/", 1)[-1].startswith(f"{self.stem}-"):
                    storage.delete_file(file)

    def add(self, *values: Any) -> None:
        """Append a row; its values are in the order of the schema."""
        if not self._file_rows:
            self._open()
        characters = sum(len(value) for value in values if isinstance(value, str))
        self._group.append(values)
        self.rows += 1
        self._file_rows += 1
        self._group_characters += characters
        self._file_characters += characters
        if self._file_rows == self.rows_per_file or self._file_characters >= FILE_CHARACTERS:
            self._close()
        elif len(self._group) == self.rows_per_group or self._group_characters >= GROUP_CHARACTERS:
            self._flush()

    def finish(self) -> list[str]:
        """Write the remaining rows and return all files in order."""
        if self._file_rows:
            self._close()
        return self.files

    def _open(self) -> None:
        self.files.append(storage.join(self.folder, f"{self.stem}-{len(self.files):06d}.parquet"))
        if storage.kind(self.files[-1]) == "absent":
            self._sink = pa.BufferOutputStream()
            self._writer = _writer(self._sink, self.schema)

    def _flush(self) -> None:
        if self._writer and self._group:
            columns = zip(zip(*self._group, strict=True), self.schema, strict=True)
            self._writer.write_table(
                pa.table([pa.array(values, field.type) for values, field in columns], schema=self.schema)
            )
        self._group, self._group_characters = [], 0

    def _close(self) -> None:
        self._flush()
        if self._writer:
            self._writer.close()
            storage.write_atomic(self.files[-1], _pieces(self._sink.getvalue()))
        elif _rows(self.files[-1]) != self._file_rows:
            raise InputError(f"{self.files[-1]}: is of another run; delete {self.folder} and run again")
        self._sink = self._writer = None
        self._file_rows = self._file_characters = 0


def write(path: str, table: pa.Table, rows_per_group: int) -> None:
    """Write one table as a Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    with _writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=rows_per_group)
    storage.write_atomic(path, _pieces(sink.getvalue()))


def _writer(sink: Any, schema: pa.Schema) -> Any:
    # Readers skip row groups by the minimum and maximum of the row; other columns need no statistics.
    rows = [name for name in ("row", "question_row") if name in schema.names]
    return pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False, write_statistics=rows)


def _rows(file: str) -> int:
    with opened(file) as parquet:
        return int(parquet.metadata.num_rows)


def _pieces(buffer: Any) -> Iterator[bytes]:
    for start in range(0, buffer.size, _PIECE):
        yield buffer.slice(start, min(_PIECE, buffer.size - start)).to_pybytes()


@contextlib.contextmanager
def opened(file: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that this package wrote, to read parts of it."""
    filesystem, inner = storage.resolve(file)
    with filesystem.open_input_file(inner) as source:
        yield pq.ParquetFile(source, pre_buffer=True)


def batches(files: Sequence[str], columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of Parquet files in order, in batches of at most ``rows``."""
    for file in files:
        with opened(file) as parquet:
            # Arrow returns columns in the order of the file; select puts them in the order asked for.
            for batch in parquet.iter_batches(rows, columns=columns):
                yield batch.select(columns)


def asked_of(run_files: Sequence[str], first_row: int, last_row: int) -> pa.Table:
    """Questions asked of the documents ``first_row`` to ``last_row``, both included.

    Only the row groups that may hold them are read. Questions without a document have row -1.

    Args:
        run_files: files of ``routing.route``, or others that have its columns and perhaps more.
        first_row: row of the first document, counted over all files.
        last_row: row of the last document.

    Returns:
        Rows of ``ASKED``, with any further columns of the files, sorted by row, then question.
    """
    found = [rows_between(file, "row", first_row, last_row) for file in run_files]
    if not found:
        return ASKED.empty_table()
    return pa.concat_tables(found).sort_by([("row", "ascending"), ("question_row", "ascending")])


def rows_between(
    file: str, column: str, first: int, last: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Rows of a Parquet file whose integer ``column`` is from ``first`` to ``last``, both included.

    Only the row groups that may hold them are read, and only ``columns``, if given.
    """
    with opened(file) as parquet:
        place = parquet.schema_arrow.get_field_index(column)
        groups = []
        for group in range(parquet.num_row_groups):
            span = parquet.metadata.row_group(group).column(place).statistics
            known = span is not None and span.has_min_max
            if not known or (span.min <= last and span.max >= first):
                groups.append(group)
        wanted = None if columns is None else list(dict.fromkeys([column, *columns]))
        table = parquet.read_row_groups(groups, columns=wanted)
    value = pc.field(column)
    return table.filter((value >= first) & (value <= last))


def documents_at(file: str, rows: Sequence[int]) -> pa.Table:
    """The documents at ascending ``rows``, which ``file`` must hold; only their row groups are read."""
    taken = [DOCUMENTS.empty_table()]
    wanted = np.array(rows, np.int64)
    with opened(file) as parquet:
        for group in range(parquet.num_row_groups):
            span = parquet.metadata.row_group(group).column(0).statistics
            first, last = np.searchsorted(wanted, [span.min, span.max + 1])
            if first < last:
                taken.append(
                    parquet.read_row_group(group, columns=DOCUMENTS.names).take(wanted[first:last] - span.min)
                )
    return pa.concat_tables(taken)


def finished(folder: str) -> dict[str, Any] | None:
    """The notes of ``finish`` on a complete folder, with its files as paths; None if it is not complete."""
    written = storage.join(folder, FILES)
    if storage.kind(written) == "absent":
        return None
    note: dict[str, Any] = storage.read_json(written)
    return {**note, "files": [storage.join(folder, name) for name in note["files"]]}


def finish(folder: str, files: Sequence[str], **notes: Any) -> None:
    """Mark a folder as complete, and keep its list of files and ``notes``."""
    names = [file.removeprefix(storage.join(folder, "")) for file in files]
    storage.write_json(storage.join(folder, FILES), {"files": names, **notes})
