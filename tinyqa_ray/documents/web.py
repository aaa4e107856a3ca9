"""The text of HTML, Markdown and EPUB as a reader sees it: no marks, scripts, menus or hidden parts."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterator

from lxml import etree

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents.archives import Archive, Element, attribute, inside, local
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.places import Places
from tinyqa_ray.documents.plain import utf8

_LEFT_OUT = {
    *("head", "script", "style", "noscript", "template", "nav", "iframe", "object", "svg", "canvas"),
    *("select", "textarea", "button", "datalist", "audio", "video", "dialog", "rp", "rt"),
}
_INLINE = {
    *("a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img"),
    *(
        "input",
        "ins",
        "kbd",
        "label",
        "mark",
        "math",
        "meter",
        "nobr",
        "output",
        "progress",
        "q",
        "ruby",
        "s",
    ),
    *("samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "acronym"),
}
_LINES = {"tr", "br", "li", "dt", "dd", "option"}
"""Elements that stand on lines of their own; those neither here nor in ``_INLINE`` are paragraphs."""
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE
)
_SPACES = re.compile(r"[ \t\n\r\f\v\xa0]+")
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?\n(?:---|\.\.\.)[ \t]*\n", re.DOTALL)
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_html(data: bytes, limits: DocumentLimits) -> Document:
    """Read a page: the encoding is that of its mark or ``meta``, else UTF-8 or Windows-1252."""
    return Document(html_text(_decoded(data)), Places(()))


def read_markdown(data: bytes, limits: DocumentLimits) -> Document:
    """Read CommonMark with tables; a block of metadata at its head is left out."""
    from markdown_it import MarkdownIt

    text = utf8(data).replace("\r\n", "\n")
    renderer = MarkdownIt("commonmark", {"maxNesting": 50}).enable(["table", "strikethrough"])
    return Document(html_text(renderer.render(_FRONT_MATTER.sub("", text))), Places(()))


def read_epub(data: bytes, limits: DocumentLimits) -> Document:
    """Read a book: its chapters in the order of its spine."""
    archive = Archive(data, limits)
    package = next(
        (
            each.get("full-path")
            for each in archive.xml("META-INF/container.xml").iter()
            if local(each) == "rootfile"
        ),
        None,
    )
    if not package:
        raise UnreadableError("names no package; give an EPUB")
    locked = _locked(archive)
    root = archive.xml(package)
    folder = package.rpartition("/")[0]
    items = {each.get("id"): each for each in root.iter() if local(each) == "item"}
    spine = [items.get(each.get("idref")) for each in root.iter() if local(each) == "itemref"]
    if len(spine) > limits.max_file_pages:
        raise UnreadableError(f"has {len(spine)} chapters, over the limit of {limits.max_file_pages}")
    texts = []
    for item in spine:
        if (
            item is None
            or "html" not in item.get("media-type", "")
            or "nav" in item.get("properties", "").split()
        ):
            continue
        name = inside(folder, item.get("href", ""))
        if name in locked:
            raise UnreadableError("is encrypted (DRM); give a copy without protection")
        texts.append(html_text(_decoded(archive.read(name))))
    return Document("\n\n".join(filter(None, texts)), Places(()))


def _locked(archive: Archive) -> set[str]:
    """The members that are encrypted; fonts often are."""
    if "META-INF/encryption.xml" not in archive:
        return set()
    found = (attribute(each, "URI") for each in archive.xml("META-INF/encryption.xml").iter())
    return {inside("", uri) for uri in found if uri}


def _decoded(data: bytes) -> str:
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding, "replace")
    said = _CHARSET.search(data[:4096])
    encoding = said[1].decode() if said else "utf-8"
    with contextlib.suppress(UnicodeDecodeError, LookupError):
        return data.decode(encoding)
    return data.decode("windows-1252", "replace")


def html_text(page: str) -> str:
    """The text of a page: blank lines between paragraphs, a line for a row of a table."""
    # The size is bounded already; without ``huge_tree``, deep pages would end early, in silence.
    parser = etree.HTMLParser(encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True)
    try:
        root = etree.fromstring(page.replace("\0", "").encode("utf-8", "replace"), parser)
    except etree.XMLSyntaxError:
        root = None
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        # What was parsed ends there.
        raise UnreadableError("is nested too deeply")
    return "" if root is None else _laid_out(_pieces(root))


def _pieces(root: Element) -> Iterator[tuple[str, str]]:
    """Texts and breaks in order, each with its kind: text, pre, cell, line or paragraph."""
    todo: list[tuple[str, Element | str]] = [("open", root)]
    in_pre = 0
    while todo:
        kind, each = todo.pop()
        if isinstance(each, str):
            yield kind, each
            continue
        name = local(each)
        edge = _edge(name)
        if kind == "close":
            in_pre -= name == "pre"
            if edge:
                yield edge, ""
            continue
        shown = "pre" if in_pre else "text"
        if each.tail:
            todo.append((shown, each.tail))
        if not name or name in _LEFT_OUT or _hidden(each) or _footer(each, name):
            continue
        if edge:
            yield edge, ""
        in_pre += name == "pre"
        todo.append(("close", each))
        todo += [("open", child) for child in reversed(each)]
        if each.text:
            yield "pre" if in_pre else "text", each.text


def _edge(name: str) -> str:
    if name in ("td", "th"):
        return "cell"
    if name in _LINES:
        return "line"
    return "" if name in _INLINE else "paragraph"


def _hidden(element: Element) -> bool:
    return (
        "hidden" in element.attrib
        or element.get("aria-hidden") == "true"
        or bool(_HIDDEN.search(element.get("style", "")))
    )


def _footer(element: Element, name: str) -> bool:
    """Whether it is the footer of a whole page, not of an article in it."""
    return name == "footer" and not any(
        local(up) in ("article", "section", "main") for up in element.iterancestors()
    )


def _laid_out(pieces: Iterator[tuple[str, str]]) -> str:
    """Texts with a blank line for paragraphs, a line feed for lines, and a tab between cells."""
    strength = {"": 0, "cell": 1, "line": 2, "paragraph": 3}
    between = ("", "\t", "\n", "\n\n")
    made: list[str] = []
    pending, space = 0, False
    for kind, text in pieces:
        if kind in strength:
            pending = max(pending, strength[kind])
            continue
        text = text.replace("\xad", "").replace("\u200b", "")
        shown = text.strip("\n").replace("\r", "") if kind == "pre" else _SPACES.sub(" ", text)
        if kind == "text" and not shown.strip():
            space = space or bool(shown)
            continue
        if made and pending:
            made.append(between[pending])
        elif made and (space or shown[0] == " "):
            made.append(" ")
        pending = 0
        space = kind == "text" and shown[-1] == " "
        made.append(shown if kind == "pre" else shown.strip())
    return "".join(made).strip()
