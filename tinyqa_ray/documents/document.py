"""A document that was read, and why a file cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.documents.places import Places


class UnreadableError(InputError):
    """A file cannot be read; the message says why in words that follow 'the file'."""


@dataclass(frozen=True, slots=True)
class Document:
    """The text of a file, and where its characters stand."""

    text: str
    places: Places
