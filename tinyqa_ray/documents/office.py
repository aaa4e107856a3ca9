"""The text of DOCX and PPTX files: paragraphs apart by blank lines, a row of a table a line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents.archives import Archive, Element, attribute, local
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.places import Page, Places

_LEFT_OUT = {"del", "moveFrom", "Fallback", "pPr", "rPr", "sdtPr", "instrText", "delText"}
"""Elements whose text is deleted, a repetition, or none of the document's."""
_MARKS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_FURNITURE = {"ftr", "hdr", "sldNum", "dt"}
"""Kinds of placeholders that repeat on slide after slide."""
_SPACES = re.compile(r"[ \t\xa0]+")


def read_docx(data: bytes, limits: DocumentLimits) -> Document:
    """Read a DOCX: body with text boxes and tables, then footnotes and endnotes; no headers and footers."""
    archive = Archive(data, limits)
    main = _main(archive, "word/document.xml")
    body = next((each for each in archive.xml(main) if local(each) == "body"), None)
    if body is None:
        raise UnreadableError("holds no document; give a DOCX")
    blocks = list(_blocks(body))
    for kind, part in archive.related(main).values():
        if kind in ("footnotes", "endnotes") and part in archive:
            for note in archive.xml(part):
                # Notes with a type are lines that separate others.
                if attribute(note, "type") in (None, "normal"):
                    blocks += _blocks(note)
    return Document("\n\n".join(blocks), Places(()))


def read_pptx(data: bytes, limits: DocumentLimits) -> Document:
    """Read a PPTX: each slide is a page, its notes at its end; numbers, dates and footers are left out."""
    archive = Archive(data, limits)
    main = _main(archive, "ppt/presentation.xml")
    parts = archive.related(main)
    named = [_relation(each) for each in _named(archive.xml(main), "sldId", by="sldIdLst")]
    if len(named) > limits.max_file_pages:
        raise UnreadableError(f"has {len(named)} slides, over the limit of {limits.max_file_pages}")
    texts = []
    for name in named:
        _, part = parts.get(name, ("", ""))
        shapes = [_shapes(archive.xml(part))]
        for kind, notes in archive.related(part).values():
            if kind == "notesSlide" and notes in archive:
                shapes.append(_shapes(archive.xml(notes), only="body"))
        texts.append("\n\n".join(block for each in shapes for block in each))
    return paged(texts)


def paged(texts: list[str]) -> Document:
    """A document of pages that are given by their texts, apart by a blank line."""
    pages, whole, at = [], [], 0
    for number, text in enumerate(texts, 1):
        gap = 2 if at and text else 0
        whole.append("\n" * gap + text)
        pages.append(Page(number, at + gap, at + gap + len(text)))
        at += gap + len(text)
    return Document("".join(whole), Places(pages))


def _main(archive: Archive, usual: str) -> str:
    kinds = dict(archive.related("").values())
    return kinds.get("officeDocument", usual)


def _relation(element: Element) -> str:
    """The id of the part that an element stands for, which is an ``id`` in a namespace, beside its own."""
    return next((str(value) for key, value in element.attrib.items() if key.endswith("}id")), "")


def _named(root: Element, name: str, by: str) -> Iterator[Element]:
    """The children called ``name`` of the elements called ``by``."""
    for each in root.iter():
        if local(each) == by:
            yield from (child for child in each if local(child) == name)


def _shapes(slide: Element, only: str | None = None) -> Iterator[str]:
    """The blocks of a slide's shapes, those of repeated placeholders left out; or of one kind alone."""
    for shape in slide.iter():
        if local(shape) not in ("sp", "graphicFrame", "cxnSp"):
            continue
        placeholders = [attribute(each, "type") or "obj" for each in shape.iter() if local(each) == "ph"]
        kind = placeholders[0] if placeholders else None
        if kind not in _FURNITURE and (only is None or kind == only):
            yield from _blocks(shape)


def _blocks(root: Element) -> Iterator[str]:
    """The paragraphs and tables within an element, each as a text that is not empty."""
    todo = list(reversed(root))
    while todo:
        each = todo.pop()
        name = local(each)
        if name == "p":
            text, inner = _paragraph(each)
            if text := _tidy(text):
                yield text
            todo += reversed(inner)
        elif name == "tbl":
            rows = [row for row in each.iter() if local(row) == "tr"]
            # A table within a cell is shown as part of that cell.
            own = [
                row
                for row in rows
                if not any(up is not each and local(up) == "tbl" for up in _ups(row, each))
            ]
            if text := "\n".join(filter(None, map(_row, own))):
                yield text
        elif name not in _LEFT_OUT:
            todo += reversed(each)


def _ups(element: Element, until: Element) -> Iterator[Element]:
    """The elements around ``element``, from the nearest, before ``until``."""
    for up in element.iterancestors():
        if up is until:
            return
        yield up


def _row(row: Element) -> str:
    cells = [" ".join(" ".join(_blocks(cell)).split()) for cell in row if local(cell) in ("tc", "sdt")]
    return "\t".join(cells).strip()


def _paragraph(paragraph: Element) -> tuple[str, list[Element]]:
    """The text of a paragraph, and the paragraphs of text boxes that are anchored in it."""
    parts: list[str] = []
    inner: list[Element] = []
    todo = list(reversed(paragraph))
    while todo:
        each = todo.pop()
        name = local(each)
        if name == "t":
            parts.append("".join(each.itertext()))
        elif name in _MARKS:
            # A break of pages or columns does not end a sentence.
            parts.append(" " if attribute(each, "type") in ("page", "column") else _MARKS[name])
        elif name == "txbxContent":
            inner += each
        elif name not in _LEFT_OUT:
            todo += reversed(each)
    return "".join(parts), inner


def _tidy(text: str) -> str:
    """Single spaces, none at either end of a line, and no soft hyphens."""
    lines = (_SPACES.sub(" ", line).strip() for line in text.replace("\xad", "").split("\n"))
    return "\n".join(line for line in lines if line)
