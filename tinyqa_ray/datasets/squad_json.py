"""Finds contexts and their questions in JSON of the forms that people bring.

These are SQuAD's nesting (articles hold paragraphs, paragraphs hold questions), and a list or JSON lines of
articles, of paragraphs, or of questions with their contexts (the hub's rows; exports of annotation tools).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.annotations import as_row

Placed = tuple[Any, str]
"""A value and its place: ``dev.json: data[0].paragraphs[2]``."""

LINES = (".jsonl", ".ndjson")
"""Endings of files with one JSON value per line."""
_NESTED = ("paragraphs", "qas", "question")
"""Keys that identify an article, a paragraph, and a question with its context."""


@dataclass(frozen=True, slots=True)
class Part:
    """A paragraph with its questions, or, if ``questions`` is None, a question with its own context."""

    title: str
    value: Any
    place: str
    questions: Iterator[Placed] | None


def read_document(data: str) -> Any:
    """Read the value of a JSON file or, for JSON lines, an iterator of values with their places.

    Raises:
        InputError: the file is absent, or not JSON.
    """
    if data.endswith(LINES):
        return _lines(data)
    try:
        return storage.read_json(data)
    except InputError:
        # The library datasets writes JSON lines into files that are called .json.
        lines = [line for line in storage.read_bytes(data).splitlines() if line.strip()]
        if len(lines) > 1 and _is_object(lines[0]):
            return _lines(data)
        raise


def parts(document: Any, data: str, member: Callable[..., Any]) -> Iterator[Part]:
    """Yield the parts of what ``read_document`` returned, in order.

    Args:
        document: a SQuAD document, a list, or an iterator of values with places.
        data: the file's name.
        member: called with ``(value, name, list, where)``; returns the list, or raises an InputError.

    Raises:
        InputError: raised by ``member``, or an annotation tool's entry is of unclear meaning.
    """
    if isinstance(document, dict) and "data" not in document and any(name in document for name in _NESTED):
        document = [document]
    if not isinstance(document, list | Iterator):
        return placed_parts(entries(document, "data", data, member), member, _NESTED)
    found = document if isinstance(document, Iterator) else rows(document, data)
    return placed_parts(((as_row(value, place), place) for value, place in found), member)


def rows(values: Iterable[Any], data: str) -> Iterator[Placed]:
    """The entries of a list, each with its place: ``rows.json: row 2``."""
    return ((value, f"{data}: row {number}") for number, value in enumerate(values))


def placed_parts(
    found: Iterable[Placed], member: Callable[..., Any], names: tuple[str, ...] = _NESTED[::-1]
) -> Iterator[Part]:
    """Parts of articles, paragraphs and questions; a value with none of ``names`` is read as the first."""
    for value, place in found:
        held = value if isinstance(value, dict) else {}
        title = str(held.get("title") or "")
        match next((name for name in names if name in held), names[0]):
            case "paragraphs":
                for paragraph, spot in entries(value, "paragraphs", place, member):
                    yield Part(title, paragraph, spot, entries(paragraph, "qas", spot, member))
            case "qas":
                yield Part(title, value, place, entries(value, "qas", place, member))
            case _:
                yield Part(title, value, place, None)


def entries(value: Any, name: str, where: str, member: Callable[..., Any]) -> Iterator[Placed]:
    """The entries of a list in a SQuAD document, each with its place: ``dev.json: data[0].paragraphs[2]``.

    Args:
        value: what holds the list.
        name: key of the list.
        where: place of ``value``; the file's name if ``value`` is the whole document.
        member: called with ``(value, name, list, where)``; returns the list, or raises an InputError.
    """
    for number, entry in enumerate(member(value, name, list, where)):
        yield entry, f"{where}{': ' if name == 'data' else '.'}{name}[{number}]"


def answer_list(given: Any, place: str, member: Callable[..., Any]) -> Any:
    """Answers as a list of objects, also from the hub's form: a list of texts and a list of starts."""
    if not isinstance(given, dict):
        return given
    texts, starts = (member(given, name, list, place) for name in ("text", "answer_start"))
    longest = max(len(texts), len(starts))
    pairs = zip(*(each + [None] * (longest - len(each)) for each in (texts, starts)), strict=True)
    return [{"text": text, "answer_start": start} for text, start in pairs]


def _lines(data: str) -> Iterator[Placed]:
    for number, line in enumerate(storage.read_bytes(data).splitlines(), start=1):
        if line.strip():
            place = f"{data}: line {number}"
            try:
                yield json.loads(line), place
            except ValueError as error:
                raise InputError(f"{place} is not JSON ({error})") from None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
