"""Word vectors from a text file: GloVe's form, or word2vec's, which begins with a line of sizes.

numpy reads the numbers, but this module reads the lines: table readers (pyarrow, pandas) allow no spaces in
words, parse more lines than are needed, and do not name the line of a mistake.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError

MAX_LINE_BYTES = 1 << 20
"""A longer line cannot be a vector; without a limit, a binary file might be read as one line."""

_FORM = "give a text file of word vectors, unpacked: a line is a word and its numbers, a space between them"


def read_vectors(path: str, limit: int) -> tuple[list[str], NDArray[np.float32]]:
    """Read the first vectors of whole words (letters only, two or more) from a GloVe text file.

    A line is a word and its numbers, separated by spaces; a first line of two whole numbers (word2vec's
    count and width) is understood. The file is streamed, and reading stops at the last row needed; a ``.gz``
    is unpacked on the way. If a word is repeated, its first row counts. Lines of other words are skipped,
    also those whose word holds spaces, as some in GloVe 840B do.

    Args:
        path: text file, here or at a URL.
        limit: most rows, 1 or more.

    Returns:
        n words, at most ``limit``, in the file's order, and their vectors, float32 (n, width).

    Raises:
        InputError: the file does not exist, or a line is not UTF-8, has more or fewer numbers than the first,
            or holds something that is no finite number; the message gives the line's number.
    """
    if limit < 1:
        raise InputError(f"limit is {limit}; it must be 1 or more")
    lines: dict[str, int] = {}  # word to the number of its line
    with warnings.catch_warnings():
        # The warnings are of no rows, and of numbers too large: both are refused below.
        warnings.simplefilter("ignore")
        try:
            matrix = np.loadtxt(_vectors(path, limit, lines), np.float32, comments=None, ndmin=2)
        except InputError:
            raise
        except ValueError:
            number = [*lines.values()][-1]
            raise InputError(f"{path}: line {number} holds what is not a number; {_FORM}") from None
    if not lines:
        raise InputError(f"{path}: holds no vector of a word; {_FORM}")
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        number = [*lines.values()][int(finite.argmin())]
        raise InputError(f"{path}: line {number} holds NaN or infinity; every number must be finite")
    return list(lines), matrix


def _vectors(path: str, limit: int, lines: dict[str, int]) -> Iterator[str]:
    """The numbers of each whole word, as text; its line is noted in ``lines`` before they are yielded."""
    width = 0
    for number, line in _lines(path):
        if not width:
            fields = line.split()
            header = len(fields) == 2 and all(field.isdigit() for field in fields)
            width = int(fields[1]) if header else _numbers_at_end(fields)
            if width < 1:
                raise InputError(f"{path}: line {number} has no vector; {_FORM}")
            if header:
                continue
        try:
            word, _, numbers = line.decode("utf-8").partition(" ")
        except UnicodeDecodeError:
            raise InputError(f"{path}: line {number} is not UTF-8; {_FORM}") from None
        whole, count = len(word) > 1 and word.isalpha(), line.count(b" ")
        if whole and count > width:
            fields = line.split()
            count = _numbers_at_end(fields)
            if width <= count < len(fields) - 1:
                continue  # the word holds spaces
        if count < width or (whole and count > width):
            raise InputError(f"{path}: line {number} has {count} numbers, not {width}; {_FORM}")
        if whole and word not in lines:
            lines[word] = number
            yield numbers
            if len(lines) == limit:
                return


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and content of every line that is not blank."""
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
    except OSError as error:  # a folder, no permission, a broken .gz
        mistake = f"{path}: {error.strerror or error}; give a readable file"
        raise faults.refused(path, error, mistake) from None


def _numbers_at_end(fields: list[bytes]) -> int:
    """Count the numbers after the word; the word itself may be a number, or hold spaces."""
    numbers = 0
    for field in reversed(fields[1:]):
        try:
            float(field)
        except ValueError:
            break
        numbers += 1
    return numbers
