from __future__ import annotations

import contextlib
import io
import random
import threading
import zipfile
from pathlib import Path

import pytest

from tinyqa_ray.core.errors import InputError

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("lxml", reason="needs the extra documents")

import pypdfium2
from documents import similarity

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents import Document, UnreadableError, read_document

FILES = Path(__file__).parent / "files"
LEAST = {"impress.pdf": 0.97, "writer.pdf": 0.99}
"""Similarity of files whose bullets are characters in the PDF; the others' is at least 0.998."""


def read(name: str) -> Document:
    return read_document(name, (FILES / name).read_bytes())


def archive(**members: bytes | str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members.items():
            made.writestr(name.replace("__", "/"), data)
    return sink.getvalue()


def docx(body: str, before: str = "") -> bytes:
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    text = f'<?xml version="1.0"?>{before}<w:document xmlns:w="{space}"><w:body>{body}</w:body></w:document>'
    return archive(**{"word__document.xml": text})


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES.glob("*.expected")))
def test_file_made_by_another_program_is_read_as_its_known_text(name: str) -> None:
    expected = (FILES / f"{name}.expected").read_text(encoding="utf-8")
    assert similarity(read(name).text, expected) >= LEAST.get(name, 0.998)


def test_paragraphs_of_a_pdf_are_apart() -> None:
    text = (FILES / "browser.pdf.expected").read_text(encoding="utf-8")
    assert read("browser.pdf").text == text.strip()
    two = read("two-columns-browser.pdf").text.split("\n\n")
    assert set(text.strip().split("\n\n")) & set(two) == set(text.strip().split("\n\n"))


def test_head_foot_and_page_numbers_are_no_text() -> None:
    text = read("divided-words.pdf").text
    assert "Harbour papers" not in text
    assert "- 2 -" not in text
    assert "head-and-foot" not in read("head-and-foot-browser.pdf").text


def test_divided_word_is_whole_unless_it_has_its_own_hyphen() -> None:
    text = read("divided-words.pdf").text
    assert "The representatives came to see the well-made wheel. It was finished between 1990-1995." in text


def test_page_and_boxes_are_where_the_words_are_drawn() -> None:
    """reportlab drew the line with this baseline, 740 - 15 points from the lower edge of 841.89."""
    document = read("divided-words.pdf")
    start = document.text.index("Part 3")
    assert document.places.page(start) == 3
    (box,) = document.places.boxes(start, start + len("Part 3"))
    assert box.page == 3
    assert box.left == pytest.approx(60, abs=0.5)
    # Widths of Times: P 556, a 444, r 333, t 278, space 250, 3 500 thousandths.
    assert box.right == pytest.approx(60 + 12 * 2.361, abs=0.1)
    assert box.top < 841.89 - 740 < box.bottom
    assert box.bottom - box.top == pytest.approx(12, abs=4)
    whole = document.text.index("representatives")
    assert [box.page for box in document.places.boxes(whole, whole + 15)] == [1, 1]
    first, second = document.places.boxes(whole, whole + 15)
    assert first.left > second.left
    assert second.top > first.top


def test_boxes_of_a_turned_page_are_those_of_the_page_as_shown() -> None:
    document = pypdfium2.PdfDocument((FILES / "divided-words.pdf").read_bytes())
    for page in document:
        page.set_rotation(90)
    document.save(sink := io.BytesIO())
    turned = read_document("a.pdf", sink.getvalue())
    page = turned.places.pages[0]
    assert (page.width, page.height) == pytest.approx((841.89, 595.28), abs=0.1)
    start = turned.text.index("Part 1")
    box, _ = turned.places.boxes(start, start + 6)
    # A quarter turn to the right: what was 60 points from the left is 60 points from the top.
    assert box.top == pytest.approx(60, abs=0.5)
    assert box.left < 740 < box.right


@pytest.mark.parametrize("name", ["browser.pdf", "divided-words.pdf", "two-columns-by-line.pdf"])
def test_every_word_has_a_box_on_its_page(name: str) -> None:
    document = read(name)
    at = 0
    for word in document.text.split():
        at = document.text.index(word, at)
        boxes = document.places.boxes(at, at + len(word))
        page = document.places.pages[boxes[0].page - 1]
        assert boxes[0].page == document.places.page(at)
        assert all(
            0 <= box.left < box.right <= page.width and 0 <= box.top < box.bottom <= page.height
            for box in boxes
        )
        at += len(word)


def test_slides_are_pages() -> None:
    document = read("slides.pptx")
    assert [page.page for page in document.places.pages] == [1, 2]
    assert document.places.page(document.text.index("lintel")) == 2
    assert document.places.page(document.text.index("Ines")) == 1
    assert document.places.boxes(0, 5) == []


def pdf(*texts: str) -> bytes:
    document = pypdfium2.PdfDocument.new()
    for _ in texts:
        document.new_page(200, 200)
    document.save(sink := io.BytesIO())
    return sink.getvalue()


WHOLE = (FILES / "browser.pdf").read_bytes()
LONG = "<w:p><w:r><w:t>" + "mill " * 3_000_000 + "</w:t></w:r></w:p>"
BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "mill" * 10}">' for n in range(10))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.pdf", b"", "is empty"),
        ("a.pdf", b"%PDF-1.7 and nothing", "is not a whole PDF"),
        ("a.pdf", WHOLE[: len(WHOLE) // 2], "is not a whole PDF"),
        ("a.pdf", pdf("", ""), r"has no text on its 2 page\(s\), which are perhaps scanned"),
        ("a.docx", b"PK\x03\x04 broken", "is not a whole archive"),
        ("a.docx", (FILES / "word.docx").read_bytes()[:9000], "is not a whole archive"),
        ("a.docx", b"\xd0\xcf\x11\xe0 with a password", "is encrypted, or in the format of an old Office"),
        ("a.docx", archive(a="b"), "lacks its part word/document.xml"),
        ("a.docx", docx("<w:p>"), "is broken in its part word/document.xml"),
        ("a.docx", docx("<w:p/>"), "holds no text"),
        (
            "a.docx",
            docx("<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>", f"<!DOCTYPE d [{BOMB}]>"),
            "amplification|document type",
        ),
        ("a.docx", docx(LONG), "unpacks to more than 8 MiB"),
        ("a.pptx", archive(**{"ppt__presentation.xml": "<p/>"}), "holds no text"),
        ("a.epub", archive(a="b"), "lacks its part META-INF/container.xml"),
        ("a.txt", b"caf\xe9", "is not UTF-8 at byte 3"),
        ("a.md", b"caf\xe9", "is not UTF-8 at byte 3"),
        ("a.html", b"<script>1</script>", "holds no text"),
        ("a.txt", b"a" * 9_000_000, "has 9000000 bytes, over the limit of 8388608"),
        ("a.txt", b"a" * 2_000_000, "has 2000000 characters of text, over the limit of 1000000"),
    ],
)
def test_bad_file_says_what_is_wrong_with_it(name: str, data: bytes, reason: str) -> None:
    limits = DocumentLimits(max_file_bytes=1 << 23, max_unpacked_bytes=1 << 23, max_file_characters=1_000_000)
    with pytest.raises(UnreadableError, match=reason):
        read_document(name, data, limits)


def test_encrypted_pdf_says_so() -> None:
    with pytest.raises(UnreadableError, match=r"is encrypted; save it without a password"):
        read("encrypted.pdf")


def test_pdf_of_too_many_pages_or_characters_is_refused() -> None:
    with pytest.raises(UnreadableError, match=r"has 4 pages, over the limit of 3"):
        read_document("a.pdf", (FILES / "divided-words.pdf").read_bytes(), DocumentLimits(max_file_pages=3))
    with pytest.raises(UnreadableError, match="more than 100 characters"):
        read_document("a.pdf", WHOLE, DocumentLimits(max_file_characters=100))


def test_member_with_a_lying_size_stays_within_the_limit() -> None:
    """The size in the directory of an archive is what its maker wrote there."""
    data = bytearray(docx(LONG))
    place = data.index(b"PK\x01\x02")
    data[place + 24 : place + 28] = (1000).to_bytes(4, "little")
    with pytest.raises(UnreadableError, match=r"unpacks to more than 1 MiB|is broken in its part"):
        read_document("a.docx", bytes(data), DocumentLimits(max_unpacked_bytes=1 << 20))


def test_external_entity_and_remote_image_are_left_alone(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    page = f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{secret}">]><p>A &x; B<img src="file://{secret}"></p>'
    for name in ("a.html", "a.xhtml"):
        assert "secret" not in read_document(name, page.encode()).text.replace("secret.txt", "")
    external = docx(
        "<w:p><w:r><w:t>A &x;</w:t></w:r></w:p>", f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{secret}">]>'
    )
    with pytest.raises(UnreadableError, match="document type"):
        read_document("a.docx", external)


def test_deleted_and_repeated_text_of_a_docx_is_left_out() -> None:
    body = (
        "<w:p><w:r><w:t>Kept </w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:ins><w:r><w:t xml:space='preserve'>new</w:t></w:r></w:ins>"
        "<w:r><w:br w:type='page'/><w:t>end.</w:t></w:r>"
        "<w:r><w:tab/><w:t>x</w:t></w:r></w:p>"
    )
    assert read_document("a.docx", docx(body)).text == "Kept new end. x"


@pytest.mark.parametrize(
    ("head", "encoding"),
    [("<meta charset=iso-8859-2>", "iso-8859-2"), ("", "windows-1252"), ("", "utf-8"), ("", "utf-16")],
)
def test_page_is_read_in_its_own_encoding(head: str, encoding: str) -> None:
    word = "żółw" if encoding != "windows-1252" else "Zoë\u2019s"
    assert read_document("a.html", f"{head}<p>{word}</p>".encode(encoding)).text == word


def test_deep_page_is_read_to_its_end_or_refused() -> None:
    page = "<div>" * 1500 + "deep" + "</div>" * 1500 + "<p>end</p>"
    assert read_document("a.html", page.encode()).text == "deep\n\nend"
    with pytest.raises(UnreadableError, match="is nested too deeply"):
        read_document("a.html", b"<p>start</p>" + b"<div>" * 5000 + b"deep")


def test_unknown_suffix_is_a_users_mistake() -> None:
    with pytest.raises(InputError, match=r"a\.xls: has no suffix of a document; allowed are \.pdf"):
        read_document("a.xls", b"x")


def test_pdfs_are_read_in_several_threads() -> None:
    """PDFium itself is not safe to call from two."""
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(read("browser.pdf").text)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert len(set(texts)) == 1


@pytest.mark.parametrize("name", sorted({path.stem for path in FILES.glob("*.expected")} | {"encrypted.pdf"}))
def test_damaged_file_is_read_or_said_to_be_unreadable(name: str) -> None:
    rng = random.Random(name)
    for _ in range(12):
        data = bytearray((FILES / name).read_bytes())
        for _ in range(rng.choice([1, 5, 50])):
            at = rng.randrange(len(data))
            if rng.random() < 0.7:
                data[at] = rng.randrange(256)
            else:
                # Never to nothing: that is another test's.
                del data[at : at + min(rng.randrange(1, 100), len(data) - 1)]
        with contextlib.suppress(UnreadableError):
            document = read_document(name, bytes(data), DocumentLimits(max_unpacked_bytes=1 << 24))
            document.text.encode()
            document.places.boxes(0, len(document.text))
