"""Plain text in UTF-8."""

from __future__ import annotations

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.places import Places


def read_text(data: bytes, limits: DocumentLimits) -> Document:
    """Read plain text, as it is."""
    return Document(utf8(data), Places(()))


def utf8(data: bytes) -> str:
    """Text in UTF-8, without a byte order mark.

    Raises:
        UnreadableError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is not UTF-8 at byte {error.start}; save it as UTF-8") from None
