"""Zip archives of XML, unpacked and parsed within limits."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from typing import Any
from urllib.parse import unquote

from lxml import etree

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents.document import UnreadableError

_OLD_OFFICE = b"\xd0\xcf\x11\xe0"
"""First bytes of the container of old Office files, and of new ones with a password."""
_CHUNK = 1 << 20
Element = Any
"""An element of lxml, whose class has a private name."""


class Archive:
    """The members of a zip archive; what is unpacked of it counts towards ``max_unpacked_bytes``."""

    def __init__(self, data: bytes, limits: DocumentLimits) -> None:
        if data.startswith(_OLD_OFFICE):
            raise UnreadableError(
                "is encrypted, or in the format of an old Office; save it anew without both"
            )
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
            raise UnreadableError(f"is not a whole archive ({_line(error)})") from None
        self._left = limits.max_unpacked_bytes
        self._limit = limits.max_unpacked_bytes
        self._names = {name.lower(): name for name in self._zip.namelist()}

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._names

    def read(self, name: str) -> bytes:
        """The bytes of a member; its name may differ in case.

        Raises:
            UnreadableError: it is absent, broken or encrypted, or over the limit with what was read before.
        """
        if name not in self:
            raise UnreadableError(f"lacks its part {name[:200]}")
        pieces = []
        try:
            # The size that the archive states may be a lie, so bytes are counted as they come.
            with self._zip.open(self._names[name.lower()]) as member:
                while piece := member.read(_CHUNK):
                    self._left -= len(piece)
                    if self._left < 0:
                        raise UnreadableError(f"unpacks to more than {self._limit >> 20} MiB")
                    pieces.append(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            if isinstance(error, UnreadableError):
                raise
            raise UnreadableError(f"is broken in its part {name[:200]} ({_line(error)})") from None
        except RuntimeError:  # what zipfile raises for a member with a password
            raise UnreadableError("is encrypted; save it without a password") from None
        return b"".join(pieces)

    def xml(self, name: str) -> Element:
        """The root of an XML member.

        Raises:
            UnreadableError: as ``read``; or it is not XML, or has a document type, which could define
                entities that expand without end.
        """
        # One parser a member: they keep the state of what they parsed.
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True
        )
        try:
            root = etree.fromstring(self.read(name), parser)
        except etree.XMLSyntaxError as error:
            raise UnreadableError(f"is broken in its part {name[:200]} ({_line(error)})") from None
        if root.getroottree().docinfo.doctype:
            raise UnreadableError(f"defines a document type in its part {name[:200]}, which is not allowed")
        return root

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """The parts that an Office part names: by id, the last word of the type, and the part's name."""
        folder, base = posixpath.split(name)
        rels = posixpath.join(folder, "_rels", f"{base}.rels")
        if rels not in self:
            return {}
        found = {}
        for each in self.xml(rels):
            if isinstance(each.tag, str) and each.get("TargetMode") != "External":
                kind = each.get("Type", "").rsplit("/", 1)[-1]
                found[each.get("Id", "")] = (kind, inside(folder, each.get("Target", "")))
        return found


def inside(folder: str, target: str) -> str:
    """The name of a member that a part in ``folder`` refers to."""
    whole = target if target.startswith("/") else posixpath.join("/", folder, target)
    return posixpath.normpath(unquote(whole)).lstrip("/")


def local(element: Element) -> str:
    """The name of an element without its namespace; empty for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Element, name: str) -> str | None:
    """The value of an attribute, in any namespace."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
