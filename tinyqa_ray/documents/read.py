"""The bytes of a file → its document, by the suffix of its name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import PurePosixPath

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.documents.document import Document, UnreadableError

SUFFIXES = {
    ".pdf": "pdf",
    ".docx": "docx",
    ".pptx": "pptx",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".epub": "epub",
    ".txt": "txt",
}
"""Format by the suffix of a name, in lower case."""
_NEEDS = {
    "pdf": ("pypdfium2", "PIL"),
    "docx": ("lxml",),
    "pptx": ("lxml",),
    "html": ("lxml",),
    "epub": ("lxml",),
    "markdown": ("lxml", "markdown_it"),
    "txt": (),
}


def format_of(name: str) -> str | None:
    """The format of a file by its name; None if it is not a document that can be read."""
    return SUFFIXES.get(PurePosixPath(name.rsplit("/", 1)[-1].lower()).suffix)


def known_format(name: str) -> str:
    """The format of a file by its name, whose libraries are installed.

    Raises:
        InputError: the suffix is unknown, or a library is not installed.
    """
    format_ = format_of(name)
    if format_ is None:
        raise InputError(f"{name}: has no suffix of a document; allowed are {', '.join(SUFFIXES)}")
    require(format_)
    return format_


def require(format_: str) -> None:
    """Check that the libraries of a format are installed.

    Raises:
        InputError: one is not.
    """
    for package in _NEEDS[format_]:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"reading {format_} needs {package}, which is not installed; "
                "pip install 'tinyqa-ray[documents]'"
            )


def read_document(name: str, data: bytes, limits: DocumentLimits | None = None) -> Document:
    """Read a file in this process; ``read_isolated`` is for files that somebody else made.

    Args:
        name: its name or path, whose suffix says the format.
        data: its bytes.
        limits: what it may take.

    Raises:
        InputError: the suffix is unknown, or the libraries for it are not installed.
        UnreadableError: the file is broken, encrypted, too large or without text; the message follows 'the
            file'.
        MemoryError: there is no more memory.
    """
    limits = limits or DocumentLimits()
    format_ = known_format(name)
    if len(data) > limits.max_file_bytes:
        raise UnreadableError(f"has {len(data)} bytes, over the limit of {limits.max_file_bytes}")
    if not data:
        raise UnreadableError("is empty")
    try:
        document = _reader(format_)(data, limits)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a parser of other people's files may fail in any way
        raise UnreadableError(f"cannot be read ({type(error).__name__}: {str(error)[:200]})") from None
    if len(document.text) > limits.max_file_characters:
        raise UnreadableError(
            f"has {len(document.text)} characters of text, over the limit of {limits.max_file_characters}"
        )
    if not document.text.strip():
        raise UnreadableError("holds no text")
    return document


def _reader(format_: str) -> Callable[[bytes, DocumentLimits], Document]:
    """The reader of a format; libraries are loaded only for the formats that come."""
    if format_ == "pdf":
        from tinyqa_ray.documents.pdf import read_pdf

        return read_pdf
    if format_ in ("docx", "pptx"):
        from tinyqa_ray.documents import office

        return office.read_docx if format_ == "docx" else office.read_pptx
    if format_ == "txt":
        from tinyqa_ray.documents.plain import read_text

        return read_text
    from tinyqa_ray.documents import web

    return {"html": web.read_html, "markdown": web.read_markdown, "epub": web.read_epub}[format_]
