"""Word vectors from a text file: GloVe's form, or word2vec's, which has one line of sizes first."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.augment.neighbours import whole_words
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

MAX_LINE_BYTES = 1 << 20
"""A longer line is no vector; without a limit a binary file would be read as one line."""

_FORM = "give a text file of word vectors, unpacked: a line is a word and its numbers, a space between them"


def read_vectors(path: str, limit: int) -> tuple[list[str], NDArray[np.float32]]:
    """Read the first vectors of whole words (letters only, two or more) from a GloVe text file.

    A line is a word and its numbers, spaces between them; a first line of two whole numbers (word2vec's
    count and width) is understood. The file is streamed and left at the last row needed; a ``.gz`` is
    unpacked on the way. Of a repeated word the first row stands. Lines of other words are passed over: also
    those whose word holds spaces, as some of GloVe 840B.

    Args:
        path: text file, here or at a URL.
        limit: most rows, 1 or more.

    Returns:
        n words, at most ``limit``, in the file's order, and their vectors, float32 (n, width).

    Raises:
        InputError: no such file, or a line that is not UTF-8, has another number of numbers than the first,
            or holds what is no finite number; with the line's number.
    """
    if limit < 1:
        raise InputError(f"limit is {limit}; it must be 1 or more")
    words: dict[str, int] = {}  # word to the number of its line
    rows: list[NDArray[np.float32]] = []
    width = 0
    for number, line in _lines(path):
        if not width:
            sizes = line.split()
            width = int(sizes[1]) if _is_header(sizes) else _numbers_at_end(sizes)
            if width < 1:
                raise InputError(f"{path}: line {number} has no vector; {_FORM}")
            if _is_header(sizes):
                continue
        row = _row(path, number, line, width)
        if row is None or row[0] in words:
            continue
        words[row[0]] = number
        rows.append(row[1])
        if len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{path}: holds no vector of a word; {_FORM}")
    matrix = np.stack(rows)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        number = list(words.values())[int(finite.argmin())]
        raise InputError(f"{path}: line {number} holds NaN or infinity; every number must be finite")
    return list(words), matrix


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Number and content of every line that is not blank, from 1 on."""
    filesystem, inner = storage.resolve(path)
    try:
        with filesystem.open_input_stream(inner) as stream, io.BufferedReader(stream, 1 << 20) as reader:
            number = 0
            while line := reader.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES:
                    raise InputError(f"{path}: line {number} is longer than {MAX_LINE_BYTES} bytes; {_FORM}")
                if line := line.rstrip(b" \t\r\n"):
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:  # a folder, no permission, a broken .gz, or a store that does not answer
        raise InputError(f"{path}: {error.strerror or error}; give a readable file") from None


def _is_header(fields: list[bytes]) -> bool:
    return len(fields) == 2 and all(field.isdigit() for field in fields)


def _numbers_at_end(fields: list[bytes]) -> int:
    """Count the numbers behind the word; the word itself may be a number, or hold spaces."""
    numbers = 0
    for field in reversed(fields[1:]):
        if _parse(field) is None:
            break
        numbers += 1
    return numbers


def _row(path: str, number: int, line: bytes, width: int) -> tuple[str, NDArray[np.float32]] | None:
    """The word of a line and its vector; None when augmentation does not use the word."""
    fields = line.count(b" ")  # behind the word
    if fields < width:
        raise InputError(f"{path}: line {number} has {fields} numbers, not {width}; {_FORM}")
    head, _, tail = line.partition(b" ")
    try:
        word = head.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: line {number} is not UTF-8; {_FORM}") from None
    if not whole_words({word: 0}, style="wordpiece")[0]:
        return None
    vector = _parse(tail)
    if vector is None:
        if fields > width and _parse(b" ".join(line.rsplit(b" ", width)[1:])) is not None:
            return None  # the word holds spaces
        raise InputError(f"{path}: line {number} holds what is not a number; {_FORM}")
    if len(vector) != width:
        raise InputError(f"{path}: line {number} has {len(vector)} numbers, not {width}; {_FORM}")
    return word, vector


def _parse(numbers: bytes) -> NDArray[np.float32] | None:
    """Numbers with spaces between them; None when something else is among them."""
    with warnings.catch_warnings():
        # numpy up to now warns of what it cannot read and gives what it could; it is to raise instead.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(numbers, dtype=np.float32, sep=" ")
        except (ValueError, DeprecationWarning):
            return None
