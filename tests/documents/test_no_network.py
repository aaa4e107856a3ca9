"""Nothing in a document has it call anybody, whatever it links, embeds, includes or defines."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("lxml", reason="needs the extra documents")

from tinyqa_ray.documents import UnreadableError, marked_picture, read_isolated

PDF = (Path(__file__).parent / "files" / "browser.pdf").read_bytes()
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
DRAWING = "http://schemas.openxmlformats.org/drawingml/2006/main"


class Server:
    """Counts who connects to it on the loopback."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.calls += 1
                connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def archive(members: dict[str, str]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        for name, text in members.items():
            made.writestr(name, text)
    return sink.getvalue()


def page(url: str) -> str:
    return f"""<!DOCTYPE html SYSTEM "{url}/a.dtd" [<!ENTITY % x SYSTEM "{url}/b.dtd"> %x;
      <!ENTITY y SYSTEM "{url}/c">]>
    <html xmlns:xi="http://www.w3.org/2001/XInclude"><head><base href="{url}">
      <link rel="stylesheet" href="{url}/d.css"><style>@import url("{url}/e.css");</style>
      <script src="{url}/f.js"></script><meta http-equiv="refresh" content="0; url={url}/g"></head>
    <body><p>An owl. &y;</p><img src="{url}/h.png"><iframe src="{url}/i"></iframe>
      <object data="{url}/j"></object><video src="{url}/k"></video><xi:include href="{url}/l"/>
      <a href="{url}/m">more</a></body></html>"""


def related(url: str) -> str:
    kinds = {"r1": "image", "r2": "footnotes", "r3": "header", "r4": "attachedTemplate"}
    rows = "".join(
        f'<Relationship Id="{name}" Type="{OFFICE}/{kind}" Target="{url}/{kind}" TargetMode="External"/>'
        for name, kind in kinds.items()
    )
    own = f'<Relationship Id="r5" Type="{OFFICE}/slide" Target="slides/a.xml"/>'
    space = "http://schemas.openxmlformats.org/package/2006/relationships"
    return f'<Relationships xmlns="{space}">{rows}{own}</Relationships>'


def word() -> str:
    return f"""<w:document xmlns:w="{WORD}" xmlns:r="{OFFICE}" xmlns:a="{DRAWING}"><w:body>
      <w:p><w:r><w:t>An owl.</w:t><w:drawing><a:blip r:link="r1"/></w:drawing></w:r></w:p>
      <w:sectPr><w:headerReference r:id="r3"/></w:sectPr></w:body></w:document>"""


def slides(url: str) -> dict[str, str]:
    names = f'xmlns:r="{OFFICE}" xmlns:a="{DRAWING}" xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
    text = "<p:txBody><a:p><a:r><a:t>An owl.</a:t></a:r></a:p></p:txBody>"
    return {
        "ppt/presentation.xml": f'<p:presentation {names}><p:sldIdLst><p:sldId r:id="r5"/></p:sldIdLst>'
        "</p:presentation>",
        "ppt/_rels/presentation.xml.rels": related(url),
        "ppt/slides/a.xml": f"<p:sld {names}><p:cSld><p:spTree><p:pic><a:blip r:link='r1'/></p:pic>"
        f"<p:sp>{text}</p:sp></p:spTree></p:cSld></p:sld>",
        "ppt/slides/_rels/a.xml.rels": related(url),
    }


def book(url: str) -> dict[str, str]:
    return {
        "META-INF/container.xml": '<container><rootfile full-path="p.opf"/></container>',
        "p.opf": '<package><manifest><item id="a" href="a.html" media-type="application/xhtml+xml"/>'
        f'<item id="b" href="{url}/b.html" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/></spine></package>',
        "a.html": page(url),
    }


def pdf(url: str) -> bytes:
    action = f"/Catalog /OpenAction << /S /URI /URI ({url}/a) >>".encode()
    assert b"/Catalog" in PDF
    return PDF.replace(b"/Catalog", action, 1)


def test_server_of_this_test_counts(server: Server) -> None:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(server.url, timeout=5)
    assert server.calls == 1


@pytest.mark.parametrize("name", ["a.html", "a.xhtml", "a.md", "a.docx", "a.pptx", "a.epub", "a.pdf"])
def test_document_calls_nobody(name: str, server: Server) -> None:
    url = server.url
    data = {
        "html": page(url).encode(),
        "xhtml": page(url).encode(),
        "md": f"An owl. ![]({url}/a.png) [more]({url}/b)\n\n<img src='{url}/c.png'>\n".encode(),
        "docx": archive({"word/document.xml": word(), "word/_rels/document.xml.rels": related(url)}),
        "pptx": archive(slides(url)),
        "epub": archive(book(url)),
        "pdf": pdf(url),
    }[name.partition(".")[2]]
    document = read_isolated(name, data)
    if name == "a.pdf":
        with contextlib.suppress(UnreadableError):
            marked_picture(data, document.places.boxes(0, 20))
    else:
        assert "An owl." in document.text
    assert server.calls == 0
