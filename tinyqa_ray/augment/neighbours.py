"""Nearest whole words in an embedding table: candidates for words that a masked language model splits.

TinyBERT (arXiv 1909.10351, algorithm 1) takes them from GloVe; any table of word vectors works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tinyqa_ray.core.errors import InputError

VocabularyStyle = Literal["wordpiece", "bytelevel", "auto"]

_SCHEMA = pa.schema(
    [("word", pa.string()), ("neighbours", pa.list_(pa.string())), ("cosine", pa.list_(pa.float32()))]
)
BLOCK_ROWS = 1024
"""Rows of the matrix that ``nearest`` multiplies at once."""


def nearest(matrix: NDArray[np.floating], *, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the ``k`` rows nearest to each row by cosine, the row itself left out.

    A blocked float32 product picks the contenders; their cosines are then summed in float64, row by row, so
    the result does not depend on the size of a block or on how the product was threaded. Memory beside the
    matrix and its normalised copy is about ``4 * BLOCK_ROWS * n`` bytes. A row of zeros has cosine 0 to every
    row.

    Args:
        matrix: (n, d), finite.
        k: in [1, n - 1].

    Returns:
        Row indices, int32 (n, k), and cosines, float32 (n, k), nearest first; ties by the lower index.

    Raises:
        InputError: a shape or ``k`` out of range, or a value that is not finite.
    """
    unit = _unit_rows(matrix)
    n, d = unit.shape
    if not 1 <= k < n:
        raise InputError(f"k is {k}; a matrix of {n} rows allows 1 to {n - 1}")

    indices = np.empty((n, k), dtype=np.int32)
    cosines = np.empty((n, k), dtype=np.float32)
    # Twice the error bound of a float32 dot product of unit vectors: no true neighbour falls below it.
    slack = d * np.finfo(np.float32).eps
    buffer = np.empty((min(BLOCK_ROWS, n), n), dtype=np.float32)  # allocated once: fresh memory costs time
    for first in range(0, n, BLOCK_ROWS):
        block = np.arange(first, min(first + BLOCK_ROWS, n))
        rough = np.matmul(unit[block], unit.T, out=buffer[: len(block)])
        rough[block - first, block] = -np.inf
        thresholds = _at_most_kth_largest(rough, k) - slack
        for row, similar, threshold in zip(block, rough, thresholds, strict=True):
            contenders = np.flatnonzero(similar >= threshold)
            products = unit[contenders].astype(np.float64) * unit[row]
            exact = products.sum(axis=1).clip(-1.0, 1.0).astype(np.float32)
            best = np.argsort(-exact, kind="stable")[:k]
            indices[row] = contenders[best]
            cosines[row] = exact[best]
    return indices, cosines


def whole_words(
    vocabulary: Mapping[str, int], *, style: VocabularyStyle = "auto"
) -> tuple[list[str], list[int]]:
    """Pick the tokens that are whole words: letters only, two or more.

    Args:
        vocabulary: token to id.
        style: "wordpiece" (BERT: a continuation starts with "##"; a plain list of words reads the same way),
            "bytelevel" (GPT-2, RoBERTa: a word starts with "Ġ"), or "auto": whose mark is more frequent.

    Returns:
        The words and their ids, by id.

    Raises:
        InputError: the style is unknown, or is "auto" and the vocabulary is a SentencePiece one.
    """
    if style == "auto":
        style = _style_of(vocabulary)
    if style not in ("wordpiece", "bytelevel"):
        raise InputError(f"style is {style!r}; it must be wordpiece, bytelevel or auto")
    pairs = []
    for token, token_id in vocabulary.items():
        word: str | None = token
        if style == "bytelevel":
            word = _decode_bytelevel(token[1:]) if token.startswith("Ġ") else None
        if word is not None and len(word) > 1 and word.isalpha():
            pairs.append((token_id, word))
    pairs.sort()
    return [word for _, word in pairs], [token_id for token_id, _ in pairs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The neighbours of each word of a vocabulary, nearest first."""

    words: Mapping[str, tuple[str, ...]]
    """Word to its neighbours."""
    cosines: Mapping[str, tuple[float, ...]]
    """Word to the cosines of its neighbours, in the same order."""

    def lookup(self, word: str) -> tuple[str, ...]:
        """Give the neighbours of ``word`` as written, or of its lower-case form, or ()."""
        return self.words.get(word) or self.words.get(word.lower(), ())

    def to_table(self) -> pa.Table:
        """Give an Arrow table: word: string, neighbours: list<string>, cosine: list<float>."""
        columns = [list(self.words), list(self.words.values()), [self.cosines[word] for word in self.words]]
        return pa.table(
            [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], _SCHEMA
        )

    @classmethod
    def from_table(cls, table: pa.Table) -> Neighbours:
        """Read a table that ``to_table`` made.

        Raises:
            InputError: a column is missing.
        """
        missing = [name for name in _SCHEMA.names if name not in table.column_names]
        if missing:
            raise InputError(
                f"the table of neighbours has no column {', '.join(missing)} (it has "
                f"{', '.join(table.column_names) or 'none'}); it needs {', '.join(_SCHEMA.names)}"
            )
        names, neighbours, cosines = (table.column(name).to_pylist() for name in _SCHEMA.names)
        return cls(
            words=dict(zip(names, map(tuple, neighbours), strict=True)),
            cosines=dict(zip(names, map(tuple, cosines), strict=True)),
        )


def neighbour_table(words: Sequence[str], matrix: NDArray[np.floating], *, k: int) -> Neighbours:
    """Compute up to ``k`` neighbours for every word.

    Neighbours differ from their word and from each other by more than case: of "Kings" and "kings", only the
    nearer one is kept.

    Args:
        words: n distinct words.
        matrix: (n, d), one row per word.
        k: neighbours per word, 1 or more; fewer come back when fewer have a cosine of 0 or more.

    Returns:
        The neighbours of every word, with their cosines.

    Raises:
        InputError: there are fewer than two words, a word is repeated, or a number is out of range.
    """
    if len(words) < 2 or matrix.shape[:1] != (len(words),):
        raise InputError(
            f"{len(words)} words were given for a matrix of shape {matrix.shape}; "
            "it takes two words or more, and a row for each"
        )
    word, count = Counter(words).most_common(1)[0]
    if count > 1:
        raise InputError(f"the word {word!r} is given {count} times; give each word once")
    if k < 1:
        raise InputError(f"k is {k}; it must be 1 or more")

    folded = [word.casefold() for word in words]
    # Enough for k other words and the word itself, each in the largest number of forms that any word has.
    most_forms = max(Counter(folded).values())
    indices, cosines = nearest(matrix, k=min(k * most_forms, len(words) - 1))
    neighbours: dict[str, tuple[str, ...]] = {}
    scores: dict[str, tuple[float, ...]] = {}
    for row, word in enumerate(words):
        seen = {folded[row]}
        chosen: list[tuple[str, float]] = []
        for index, cosine in zip(indices[row].tolist(), cosines[row].tolist(), strict=True):
            if len(chosen) == k or cosine < 0:
                break
            if folded[index] not in seen:
                seen.add(folded[index])
                chosen.append((words[index], cosine))
        neighbours[word] = tuple(name for name, _ in chosen)
        scores[word] = tuple(cosine for _, cosine in chosen)
    return Neighbours(words=neighbours, cosines=scores)


def _at_most_kth_largest(values: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """A threshold for each row, (rows,), that its k largest values reach and few other values do.

    It is the k-th largest of the maxima of disjoint groups: at least k values are that large, one in each of
    k groups. It needs one pass over a row; finding the k-th largest value itself takes ten times as long.
    """
    groups = min(values.shape[1], 100 * k)
    size = values.shape[1] // groups
    maxima = values[:, : groups * size].reshape(len(values), size, groups).max(axis=1)
    kth: NDArray[np.float32] = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    return kth


def _unit_rows(matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    """Scale every row to length 1; rows of zeros stay zero."""
    rows = np.asarray(matrix, dtype=np.float32)
    if rows.ndim != 2:
        raise InputError(f"the embedding matrix has shape {rows.shape}; it must be (words, dimensions)")
    if not np.isfinite(rows).all():
        raise InputError("the embedding matrix holds NaN or infinity; every value must be finite")
    # Divide by the largest entry first, so that squares neither overflow nor vanish.
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    largest[largest == 0] = 1
    unit: NDArray[np.float32] = rows / largest
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    length[length == 0] = 1
    unit /= length
    return unit


def _style_of(vocabulary: Mapping[str, int]) -> Literal["wordpiece", "bytelevel"]:
    marks = ("##", "Ġ", "▁")
    wordpiece, bytelevel, sentencepiece = (
        sum(token.startswith(mark) for token in vocabulary) for mark in marks
    )
    if sentencepiece > max(wordpiece, bytelevel):
        raise InputError(
            "the vocabulary is a SentencePiece one (its words start with '▁'); use a WordPiece (BERT) or "
            "byte-level (RoBERTa) model"
        )
    return "bytelevel" if bytelevel > wordpiece else "wordpiece"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters and their bytes: printable Latin-1 is itself, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()


def _decode_bytelevel(token: str) -> str | None:
    """Decode a token of a byte-level vocabulary; None if it is not complete UTF-8."""
    try:
        return bytes(_BYTES[character] for character in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
