"""The words of a PDF's pages, with their boxes, as PDFium finds them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from typing import Any

import pypdfium2
import pypdfium2.raw as pdfium

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.layout import Line, Sheet, Word, composed, plain

LOCK = threading.Lock()
"""PDFium is not safe to call from several threads."""
_PASSWORD = 4
_HYPHEN = "\ufffe"
"""What PDFium puts where a word is divided, in place of the hyphen and the line break."""
_LINE_ENDS = {"\r", "\n", _HYPHEN}
_UNITS = 100
"""Device units of a point, in which PDFium is asked where a page's corners are."""


def read_pdf(data: bytes, limits: DocumentLimits) -> Document:
    """Read a PDF: text in reading order, without the lines that repeat at the head and foot of its pages.

    Raises:
        UnreadableError: it is broken, encrypted or too long, has no pages, or none has text.
    """
    with LOCK:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            if error.err_code == _PASSWORD:
                raise UnreadableError("is encrypted; save it without a password") from None
            raise UnreadableError("is not a whole PDF; give one that a viewer opens") from None
        try:
            sheets = list(_sheets(document, limits))
        finally:
            document.close()
    if not sheets:
        raise UnreadableError("has no pages")
    if not any(sheet.lines for sheet in sheets):
        raise UnreadableError(
            f"has no text on its {len(sheets)} page(s), which are perhaps scanned; recognise their text (OCR)"
        )
    return composed(sheets)


def _sheets(document: pypdfium2.PdfDocument, limits: DocumentLimits) -> Iterator[Sheet]:
    if len(document) > limits.max_file_pages:
        raise UnreadableError(f"has {len(document)} pages, over the limit of {limits.max_file_pages}")
    left = limits.max_file_characters
    for number in range(len(document)):
        try:
            page = document[number]
            text = page.get_textpage()
        except pypdfium2.PdfiumError:
            raise UnreadableError(f"is broken at page {number + 1}") from None
        width, height = page.get_size()
        try:
            left -= text.count_chars()
            if left < 0:
                raise UnreadableError(f"has more than {limits.max_file_characters} characters of text")
            yield Sheet(number + 1, width, height, tuple(_lines(page, text)))
        finally:
            text.close()
            page.close()


def _lines(page: Any, text: Any) -> Iterator[Line]:
    """The lines of a page in the order in which it draws them."""
    letters = _letters(text)
    where = _Boxes(page, text)
    words: list[Word] = []
    first = None
    for at, letter in enumerate([*letters, "\n"]):
        ends_line = letter in _LINE_ENDS
        if not (ends_line or letter.isspace()):
            first = at if first is None else first
            continue
        if first is not None:
            if shown := plain("".join(letters[first:at]) + ("-" if letter == _HYPHEN else "")):
                words.append(Word(shown, *where.of(first, at)))
            first = None
        if ends_line and words:
            yield Line(tuple(words), divided=letter == _HYPHEN)
            words = []


def _letters(text: Any) -> list[str]:
    """The characters of a page, by PDFium's index."""
    count = text.count_chars()
    buffer = (ctypes.c_ushort * (count + 1))()
    # One call for the page; its characters have the indices of PDFium's unless some are left out or need two
    # units of UTF-16.
    written = pdfium.FPDFText_GetText(text, 0, count, buffer)
    if written == count + 1:
        whole = bytes(buffer)[: 2 * count].decode("utf-16-le", "surrogatepass")
        if len(whole) == count:
            return list(whole)
    codes = [pdfium.FPDFText_GetUnicode(text, at) for at in range(count)]
    return [_HYPHEN if code == 2 else chr(code) if 0 < code < 0x110000 else "" for code in codes]


class _Boxes:
    """Boxes of characters on a page as it is shown: turned, cut, from its upper left corner."""

    def __init__(self, page: Any, text: Any) -> None:
        self._text = text
        self._rectangle = pdfium.FS_RECTF()
        width, height = (round(side * _UNITS) for side in page.get_size())
        corners = []
        for x, y in ((0, 0), (1000, 0), (0, 1000)):
            right, down = ctypes.c_int(), ctypes.c_int()
            pdfium.FPDF_PageToDevice(page, 0, 0, width, height, 0, x, y, right, down)
            corners.append((right.value / _UNITS, down.value / _UNITS))
        self._origin = corners[0]
        # What one point to the right and one point up add.
        self._x, self._y = (
            [(b - a) / 1000 for a, b in zip(corners[0], each, strict=True)] for each in corners[1:]
        )

    def of(self, first: int, end: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the characters [first, end), which stand on one line."""
        edges = []
        for at in {first, end - 1}:
            rectangle = self._rectangle
            if pdfium.FPDFText_GetLooseCharBox(self._text, at, rectangle):
                edges.append((rectangle.left, rectangle.bottom))
                edges.append((rectangle.right, rectangle.top))
        if not edges:
            return 0.0, 0.0, 0.0, 0.0
        xs = [self._origin[0] + x * self._x[0] + y * self._y[0] for x, y in edges]
        ys = [self._origin[1] + x * self._x[1] + y * self._y[1] for x, y in edges]
        return min(xs), min(ys), max(xs), max(ys)
