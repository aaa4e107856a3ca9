"""A document that was read, limits of reading, and why a file cannot be read."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a file may take; one that takes more is unreadable, so that memory and time stay bounded."""

    file_bytes: int = 1 << 28
    """Bytes of a file."""
    unpacked_bytes: int = 1 << 28
    """Bytes of all members of an archive that are unpacked."""
    characters: int = 1 << 26
    """Characters of the text."""
    pages: int = 10_000
    """Pages of a PDF, slides of a presentation, or chapters of a book."""
