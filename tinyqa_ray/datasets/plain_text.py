"""Plain text files → paragraphs without questions, streamed: the data of general distillation.

A paragraph is a run of lines that are not blank; its line breaks become line feeds. So a file with one
paragraph per line and no blank lines is read as one long paragraph, and its windows are all full. White space
around a paragraph is dropped. A paragraph longer than ``LONGEST`` is split at white space, so that no file
has to fit in memory, not even one without a line break.
"""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Iterator

import pyarrow as pa

from tinyqa_ray.core import faults, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad

LONGEST = 1 << 15
"""Most characters of a paragraph."""
_SUFFIX = ".txt"
_READ = 1 << 20
"""Bytes read at once."""
_TABLE = 1 << 23
"""Characters at which a table is full."""
_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_TO_LAST_SPACE = re.compile(r".*\S(?=\s)", re.DOTALL)


def is_text(data: str) -> bool:
    """Whether ``data`` is plain text: a name that ends in ``.txt``, or a folder with such files at any depth.

    The output folder of a stage and a folder with Parquet files are not plain text.
    """
    if storage.kind(data) != "folder":
        return data.endswith(_SUFFIX)
    marks = (storage.join(data, name) for name in (stage_folder.STARTED, stage_folder.SUCCESS))
    if any(storage.kind(mark) == "file" for mark in marks) or storage.list_files(data, ".parquet"):
        return False
    return bool(storage.list_files(data, _SUFFIX, recursive=True))


def check_texts(data: str) -> None:
    """Check plain text by reading all of it once, in pieces.

    Raises:
        InputError: the text is absent, is not UTF-8, or holds nothing but white space.
    """
    # sum() reads to the end; any() would stop at the first letter.
    if not sum(len(text.strip()) for file in _files(data) for text in _decoded(file)):
        raise InputError(f"{data}: holds no text; give a .txt file with text, or a folder of them")


def paragraph_tables(data: str) -> Iterator[pa.Table]:
    """Paragraphs of plain text, of schema ``squad.PARAGRAPHS``, in tables that fit in memory.

    They come in the order of the files' names, each named by its file and number: ``a/b.txt#0``. They
    have no title and no questions.

    Raises:
        InputError: the text is absent or not UTF-8.
    """
    names: list[str] = []
    contexts: list[str] = []
    characters = 0
    within = f"{data.rstrip('/')}/" if storage.kind(data) == "folder" else data[: data.rfind("/") + 1]
    for file in _files(data):
        for number, context in enumerate(paragraphs(file)):
            names.append(f"{file.removeprefix(within)}#{number}")
            contexts.append(context)
            characters += len(names[-1]) + len(context)
            if characters >= _TABLE:
                yield _table(names, contexts)
                names, contexts, characters = [], [], 0
    if names:
        yield _table(names, contexts)


def paragraphs(file: str) -> Iterator[str]:
    """Paragraphs of one file, none of them empty or longer than ``LONGEST``.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    rest = ""
    # Blank lines at the end close the last paragraph.
    for text in itertools.chain(_decoded(file), ["\n\n"]):
        *whole, rest = _BLANK_LINES.split(rest + text)
        for paragraph in whole:
            parts, last = _parted(paragraph.rstrip())
            yield from parts
            if last:
                yield last
        parts, rest = _parted(rest)
        yield from parts


def _parted(text: str) -> tuple[list[str], str]:
    """Split pieces off the front of ``text`` until at most ``LONGEST`` characters remain; pieces and rest.

    Where a piece ends depends on the first ``LONGEST`` + 1 characters alone, not on how much has been read.
    """
    parts = []
    text = text.lstrip()
    while len(text) > LONGEST:
        space = _TO_LAST_SPACE.match(text, 0, LONGEST + 1)
        end = space.end() if space else LONGEST
        parts.append(text[:end])
        text = text[end:].lstrip()
    return parts, text


def _decoded(file: str) -> Iterator[str]:
    """The text of a file in pieces, without a byte order mark; every line break becomes a line feed."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    filesystem, inner = storage.resolve(file)
    read = 0
    try:
        with filesystem.open_input_stream(inner) as stream:
            while piece := stream.read(_READ):
                read += len(piece)
                yield decoder.decode(piece)
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # The decoder saw the bytes that it had kept of the last piece, and then this piece.
        place = read - len(error.object) + error.start
        raise InputError(f"{file}: not UTF-8 at byte {place}; save it as UTF-8 text") from None
    except OSError as error:
        mistake = f"{file}: {error.strerror or error}; give a readable file"
        raise faults.refused(file, error, mistake) from None


def _files(data: str) -> list[str]:
    match storage.kind(data):
        case "file":
            return [data]
        case "folder":
            return storage.list_files(data, _SUFFIX, recursive=True)
    raise InputError(f"{data}: no such file or folder")


def _table(names: list[str], contexts: list[str]) -> pa.Table:
    rows = len(names)
    columns = {
        "paragraph_id": names,
        "title": [""] * rows,
        "context": contexts,
        "questions": [[]] * rows,
        "source_id": names,
        "copy": [0] * rows,
    }
    return pa.table(columns, schema=squad.PARAGRAPHS)
