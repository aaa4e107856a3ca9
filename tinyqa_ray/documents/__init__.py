"""Files as people have them (PDF, DOCX, PPTX, HTML, Markdown, EPUB, text) → text, with pages and boxes.

What reads them, and why (extra ``documents``):

- PDF: pypdfium2 (Apache 2.0 or BSD; PDFium inside). It knows the box of each character, can draw the page,
  and says by an error code that a file is encrypted or broken; pdfminer.six and pypdf, which are pure Python,
  draw no pages. PyMuPDF can do the same, but under the AGPL.
- DOCX, PPTX and EPUB are zip archives of XML, read with lxml (BSD) and zipfile: python-docx leaves
  out text boxes, footnotes and tracked insertions, and it and python-pptx unpack members of any size.
- HTML: lxml, too. Markdown: markdown-it-py (MIT), rendered to HTML, so that marks are no part of the text.

No reader opens anything but the bytes that it is given: no links, remote images or external entities.
``read_isolated`` reads in processes of their own, within limits of time and memory.
"""

from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.isolated import marked_picture, read_isolated
from tinyqa_ray.documents.places import Box, Places
from tinyqa_ray.documents.read import SUFFIXES, format_of, read_document, require

__all__ = [
    "SUFFIXES",
    "Box",
    "Document",
    "Places",
    "UnreadableError",
    "format_of",
    "marked_picture",
    "read_document",
    "read_isolated",
    "require",
]
