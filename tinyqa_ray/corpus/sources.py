"""The files of an input, their format and their columns; and checks of their values."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import formats

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "txt",
}
"""Format by the suffix of a name; ``.gz`` may follow a suffix of ``jsonl`` or ``csv``."""
_GIVE = "give Parquet, JSONL, CSV or TSV (a file or a folder of them), or a folder of .txt files"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_ESCAPED = range(0xDC80, 0xDD00)
"""Code points as which bytes that are not UTF-8 are read, see ``formats.Row``."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file of rows, or one text file or folder of them."""

    path: str
    format: str
    names: tuple[str, ...]

    def column(self, choices: Sequence[str]) -> str:
        """The first of ``choices`` that the source has.

        Raises:
            InputError: it has none of them.
        """
        for name in choices:
            if name in self.names:
                return name
        found = ", ".join(map(_SHORT.repr, self.names[:20])) or "none"
        hint = "; the first line must name the columns" if self.format == "csv" else ""
        raise InputError(f"{self.path}: lacks a column {' or '.join(choices)}; found {found}{hint}")

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[formats.Row]:
        """All rows; if ``columns`` is given, some formats read only these; missing ones are ignored."""
        if columns is not None:
            columns = [name for name in columns if name in self.names]
        return formats.ROWS[self.format](self.path, columns)


def find(path: str) -> list[Source]:
    """The sources in a file or folder, sorted by name, with their columns.

    Hidden files are skipped, and so are files in a folder whose suffix is not in ``SUFFIXES``.

    Raises:
        InputError: there are none, one cannot be read, formats differ, or a column occurs twice.
    """
    files = _listed(path)
    found = [(file, format_of(file)) for file in files]
    known = sorted({each for _, each in found if each})
    if not known:
        others = ", ".join(file.rsplit("/", 1)[-1] for file in files[:5]) or "nothing"
        raise InputError(f"{path}: holds no data, found {others}; {_GIVE}")
    if len(known) > 1:
        raise InputError(f"{path}: holds files of {', '.join(known)}; give a folder of one format")
    if known == ["txt"]:
        return [_source(path, "txt")]
    sources = [_source(file, each) for file, each in found if each]
    # A file without rows is left out, so that it is not refused for lacking columns.
    return [source for source in sources if source.names or any(source.rows())]


def _listed(path: str) -> list[str]:
    try:
        with formats.readable(path):
            kind = storage.kind(path)
            files = storage.list_files(path, recursive=True) if kind == "folder" else [path]
    except UnicodeDecodeError:
        raise InputError(f"{path}: holds a file whose name is not UTF-8; rename it") from None
    if kind == "absent":
        raise InputError(f"{path}: no such file or folder")
    return formats.visible(path, files) if kind == "folder" else files


def format_of(file: str) -> str | None:
    """The format of a file of rows or of text by its name; None if it has another one."""
    name = file.rsplit("/", 1)[-1].lower()
    known = SUFFIXES.get(PurePosixPath(name.removesuffix(".gz")).suffix)
    return None if name.endswith(".gz") and known not in ("jsonl", "csv") else known


def _source(path: str, format_: str) -> Source:
    names = formats.NAMES[format_](path)
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: has the column {_SHORT.repr(twice[0])} twice; give each its own name")
    return Source(path, format_, tuple(names))


def fault(value: Any) -> str | None:
    """Why a value is not text that a model can read; None if it is."""
    if value is None:
        return "is missing"
    if isinstance(value, formats.Unreadable):
        return value.reason
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not a string"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        if ord(value[error.start]) in _ESCAPED:
            return f"is not UTF-8 at byte {len(value[: error.start].encode())}"
        return f"holds half a surrogate pair at character {error.start}"
    return None if value.strip() else "is empty"


def given(value: Any) -> bool:
    """Whether an optional value is given; a CSV file has an empty string for one that is not."""
    return value is not None and value != ""


def identifier(value: Any, what: str) -> str:
    """An id as text.

    Raises:
        InputError: it is missing, or is neither a valid string nor a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not given(value):
        raise InputError(f"{what} is missing; give a string or a whole number")
    if not isinstance(value, str):
        raise InputError(f"{what} is {_SHORT.repr(value)}; give a string or a whole number")
    if (wrong := fault(value)) and value.strip():
        raise InputError(f"{what} {wrong}; give a string or a whole number")
    return value


def shown(key: str) -> str:
    """An id in a message, shortened when it is long."""
    return _SHORT.repr(key)
