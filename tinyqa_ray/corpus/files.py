"""Documents that are files (PDF, DOCX, web pages, …): which they are, and the pass that reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tinyqa_ray import documents
from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core import shards, storage
from tinyqa_ray.core.cluster import cores
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import formats, sources, tables
from tinyqa_ray.documents.places import PAGES, PIECES

TEXTS = pa.schema([*tables.DOCUMENTS, pa.field("pages", PAGES), pa.field("pieces", PIECES)])
"""Rows of ``tables.DOCUMENTS``, and where the characters of the text stand."""
_LISTED = pa.schema(
    [
        pa.field("row", pa.int64()),
        pa.field("path", pa.string()),
        pa.field("document_id", pa.string()),
        pa.field("bytes", pa.int64()),
    ]
)
_FILES_A_SHARD = 64
_BYTES_A_SHARD = 1 << 25
"""Most files of a shard, and bytes of them unless it is a single file: bound its memory and its time."""


@dataclass(frozen=True, slots=True)
class Files:
    """Files that are documents; the id of each is its path within ``folder``."""

    folder: str
    files: tuple[storage.File, ...]

    def id_of(self, file: storage.File) -> str:
        """The id of a document."""
        return file.path.removeprefix(self.folder.rstrip("/") + "/").removeprefix("./")


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Texts of files, in Parquet of schema ``TEXTS``."""

    files: tuple[str, ...]
    starts: tuple[int, ...]
    """The first row of each file."""
    folder: str
    """Where the documents are: the id of each is its path within."""
    pages: int
    """Pages of all documents whose format has them."""
    pages_without_text: int


def find(path: str) -> Files | None:
    """The documents in a file, in a folder at any depth, or that match a pattern with ``*``.

    None if these are tables or nothing but ``.txt`` files, which ``sources.find`` reads. Hidden files and
    those of other formats are left out, and ``.md`` files where there are tables, which they describe.

    Raises:
        InputError: there are both documents and tables, or the pattern matches no document.
    """
    folder, found = _listed(path)
    kinds = {file.path: documents.format_of(file.path) for file in found}
    known = [file for file in found if kinds[file.path]]
    names = sorted({str(kinds[file.path]) for file in known})
    data = [file.path for file in found if sources.format_of(file.path) not in (None, "txt")]
    if data and set(names) <= {"markdown", "txt"}:
        known = []
    if data and known:
        raise InputError(
            f"{path}: holds documents ({', '.join(names)}) and tables, such as {data[0].rsplit('/', 1)[-1]}; "
            "give one kind, for example as a pattern such as FOLDER/**/*.pdf"
        )
    if "*" in path and storage.kind(path) == "absent":
        if not known:
            raise InputError(f"{path}: matches no document; allowed are {', '.join(documents.SUFFIXES)}")
    elif not known or names == ["txt"]:
        return None
    return Files(folder, tuple(known))


def _listed(path: str) -> tuple[str, list[storage.File]]:
    """The files of a path, and the folder to which their ids are relative."""
    with formats.readable(path):
        match storage.kind(path):
            case "absent" if "*" in path:
                folder, found = storage.fixed_part(path), storage.matching(path)
            case "folder":
                folder, found = path, storage.listing(path, recursive=True)
            case "file":
                return path.rpartition("/")[0] or ".", storage.listing(path)
            case _:
                return path, []
    shown = set(formats.visible(folder, [file.path for file in found]))
    return folder, [file for file in found if file.path in shown]


def convert(
    found: Files,
    folder: str,
    listing: str,
    *,
    limits: DocumentLimits | None = None,
    actors: int = 1,
    threads: int = 0,
    progress: shards.Progress | None = None,
) -> Texts:
    """Write the texts of files as ``part-*.parquet`` of schema ``TEXTS``; continues an interrupted call.

    A file that cannot be read becomes a row with ``error``, as one that is encrypted, broken, without text,
    or over a limit. Files are read in processes of their own, as many as there are cores.

    Args:
        found: the files.
        folder: where the texts go; use it for nothing else.
        listing: file to write the list of the files to, which the workers read.
        limits: what a file may take.
        actors: Ray actors that work on shards at the same time.
        threads: files that an actor reads at the same time; 0 takes its share of the node's cores.
        progress: called with numbers of files as shards finish.

    Raises:
        InputError: a library is not installed, or a store cannot be read or written.
    """
    for format_ in sorted({str(documents.format_of(file.path)) for file in found.files}):
        documents.require(format_)
    if storage.kind(listing) == "absent":
        rows = [
            {
                "row": row,
                "path": storage.absolute(file.path),
                "document_id": found.id_of(file),
                "bytes": file.size,
            }
            for row, file in enumerate(found.files)
        ]
        shards.write_input(listing, pa.Table.from_pylist(rows, schema=_LISTED))
    plan = [
        shards.Shard(index, listing, first, end - first, storage.join(folder, f"part-{index:06d}.parquet"))
        for index, (first, end) in enumerate(_cut([file.size for file in found.files]))
    ]
    options = {"limits": limits or DocumentLimits(), "actors": actors, "threads": threads}
    counts = shards.run(plan, Converter, options, shards.Workers(actors=actors, threads=threads), progress)
    return Texts(
        files=tuple(shard.target for shard in plan),
        starts=tuple(shard.offset for shard in plan),
        folder=storage.absolute(found.folder),
        pages=int(counts.get("pages", 0)),
        pages_without_text=int(counts.get("pages_without_text", 0)),
    )


def _cut(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of files within both limits of a shard, unless one is a single file."""
    ranges, first, total = [], 0, 0
    for at, size in enumerate(sizes):
        if at > first and (at - first == _FILES_A_SHARD or total + size > _BYTES_A_SHARD):
            ranges.append((first, at))
            first, total = at, 0
        total += size
    return [*ranges, (first, len(sizes))]


class Converter:
    """Reads the files of a shard; each actor makes one."""

    def __init__(self, limits: DocumentLimits, actors: int = 1, threads: int = 1) -> None:
        self._read = functools.partial(_read, limits=limits)
        # Each thread waits for a process, which does the work.
        self._pool = ThreadPoolExecutor(threads or cores(actors), "files")

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Turn rows of the list of files into rows of ``TEXTS``."""
        made: list[dict[str, Any]] = []
        pieces: list[pa.Array] = []
        counts = {"pages": 0.0, "pages_without_text": 0.0}
        given = rows.to_pylist()
        found = self._pool.map(self._read, rows["path"].to_pylist(), rows["bytes"].to_pylist())
        for row, (document, error) in zip(given, found, strict=True):
            kept: dict[str, Any] = {"row": row["row"], "document_id": row["document_id"], "meta": None}
            if document is None:
                made.append({**kept, "text": None, "error": error, "pages": None})
                pieces.append(None)
                continue
            pages, own = document.places.to_arrow()
            counts["pages"] += len(pages)
            counts["pages_without_text"] += sum(page["start"] == page["end"] for page in pages)
            made.append({**kept, "text": document.text, "error": None, "pages": pages})
            pieces.append(own)
        columns = [pa.array([row[name] for row in made], TEXTS.field(name).type) for name in TEXTS.names[:-1]]
        return pa.table([*columns, pieces_column(pieces)], schema=TEXTS), counts


def pieces_column(items: Sequence[pa.Array | None]) -> pa.Array:
    """A column of type ``PIECES`` from the items of its rows; a row without any is null."""
    ends = [0]
    for item in items:
        ends.append(ends[-1] + (len(item) if item is not None else 0))
    full = [item for item in items if item is not None and len(item)]
    values = pa.concat_arrays(full) if full else pa.array([], PIECES.value_type)
    empty = pa.array([item is None or not len(item) for item in items])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), values, PIECES, mask=empty)


def _read(path: str, size: int, limits: DocumentLimits) -> tuple[documents.Document | None, str | None]:
    """The document in a file, or why there is none."""
    if size > limits.max_file_bytes:  # such a file is not even loaded
        return None, f"the file has {size} bytes, over the limit of {limits.max_file_bytes}"
    data = storage.read_bytes(path)
    try:
        document = documents.read_isolated(path, data, limits)
    except documents.UnreadableError as error:
        return None, f"the file {error}"
    wrong = sources.fault(document.text)
    return (None, f"the text {wrong}") if wrong else (document, None)
