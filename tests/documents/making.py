# ruff: noqa: E501, RUF001, RUF005
"""Makes the files under ``files/``, each with its known text beside it, by programs that people use.

    PYTHONPATH=. python tests/documents/making.py

It needs Chromium, LibreOffice (writer and impress), reportlab, fpdf2, python-docx and python-pptx; tests do not:
they read what is made. The expected text is what a person would read aloud: no page numbers, no running heads.
"""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
from datetime import datetime, timezone
from pathlib import Path

FILES = Path(__file__).parent / "files"
TITLE = "The tide mill at Carrow Point"
PARAGRAPHS = (
    "The tide mill at Carrow Point grinds only when the sea allows it. Twice a day the incoming water fills a "
    "pond behind the dam, and the miller, Ines Adair, opens the sluice once the ebb has begun. On a spring "
    "tide the stones turn for almost six hours.",
    "The mill burned down in 1809 and was rebuilt two years later, with a well-made wheel of oak and an office "
    "for the toll. Its efficient floats were fluted, and their workmanship was extraordinarily accomplished; "
    "representatives of neighbouring communities came to see them.",
    "In the café beside it, Zoë Müller — born in São Paulo — sells “tide bread” for 3.50 francs. Between 1990 "
    "and 1995 she was the mill’s keeper, and she wrote its history, which has 212 pages and was printed in "
    "Zürich.",
    "A gauge on the wall shows the height of the water. At 2.4 metres the gates are closed, whatever the hour, "
    "and the keeper rings the bell three times, so that nobody is left on the causeway when it disappears "
    "beneath the surface.",
    "Three of the four wheels are gone. The last was repaired by the carpenter Aldous Finch, who found in its "
    "shaft a coin of 1743 and gave it to the harbour museum, where it lies in the second room, between the "
    "lamp of the lighthouse and a model of the ferry.",
)
TABLE = (("Month", "Flour", "Visitors"), ("March", "812 kg", "1,904"), ("April", "977 kg", "2,310"))
ITEMS = ("Close the upper gate.", "Ring the bell three times.", "Wait for the ebb.")
NOTE = "The date is carved into the lintel."


def blocks(*parts: str) -> str:
    return "\n\n".join(parts)


def table(rows: tuple[tuple[str, ...], ...] = TABLE) -> str:
    return "\n".join("\t".join(row) for row in rows)


def html(body: str, style: str = "") -> str:
    return (
        f"<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Not the text</title><style>body "
        f"{{ font: 11pt serif }} {style}</style><script>var no = 'text';</script></head><body>{body}</body></html>"
    )


def paragraphs(several: tuple[str, ...] = PARAGRAPHS) -> str:
    return "".join(f"<p>{each}</p>" for each in several)


def html_table() -> str:
    rows = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in TABLE)
    return f"<table>{rows}</table>"


def chromium(page: str, name: str, *, furniture: bool = False) -> None:
    """Print a page to PDF, with the browser's own head and foot if ``furniture``."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, encoding="utf-8")
        options = [] if furniture else ["--no-pdf-header-footer"]
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *options]
            + [f"--print-to-pdf={FILES / name}", str(source)],
            check=True,
            capture_output=True,
        )


def office(source: Path, kind: str, name: str) -> None:
    """Convert a file with LibreOffice."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["soffice", "--headless", f"-env:UserInstallation=file://{folder}/profile", "--convert-to", kind]
            + ["--outdir", folder, str(source)],
            check=True,
            capture_output=True,
        )
        made = next(Path(folder).glob(f"{source.stem}.{kind.partition(':')[0]}"))
        (FILES / name).write_bytes(made.read_bytes())


def known(name: str, text: str) -> None:
    (FILES / f"{name}.expected").write_text(text + "\n", encoding="utf-8")


def docx_file(path: Path, *, columns: int = 1, head: str = "", repeat: int = 1) -> None:
    import docx
    from docx.oxml.ns import qn

    document = docx.Document()
    section = document.sections[0]
    if columns > 1:
        section._sectPr.xpath("./w:cols")[0].set(qn("w:num"), str(columns))
    if head:
        section.header.paragraphs[0].text = head
    document.add_heading(TITLE, 1)
    for each in PARAGRAPHS * repeat:
        document.add_paragraph(each)
    for each in ITEMS:
        document.add_paragraph(each, style="List Bullet")
    if columns == 1:
        made = document.add_table(len(TABLE), len(TABLE[0]))
        for row, values in zip(made.rows, TABLE, strict=True):
            for cell, value in zip(row.cells, values, strict=True):
                cell.text = value
    document.save(str(path))


def pptx_file(path: Path) -> None:
    import pptx

    presentation = pptx.Presentation()
    for number in range(2):
        slide = presentation.slides.add_slide(presentation.slide_layouts[1])
        slide.shapes.title.text = TITLE if number == 0 else "What to do at high water"
        slide.placeholders[1].text = PARAGRAPHS[0] if number == 0 else "\n".join(ITEMS)
    slide.notes_slide.notes_text_frame.text = NOTE
    presentation.save(str(path))


SLIDES = blocks(TITLE, PARAGRAPHS[0], "What to do at high water", *ITEMS)


def main() -> None:
    FILES.mkdir(exist_ok=True)
    pdf_from_browser()
    pdf_from_libraries()
    from_office()
    web()


def pdf_from_browser() -> None:
    chromium(html(f"<h1>{TITLE}</h1>" + paragraphs()), "browser.pdf")
    known("browser.pdf", blocks(TITLE, *PARAGRAPHS))
    two = "div { column-count: 2; column-fill: auto; height: 6cm; text-align: justify; hyphens: manual }"
    shy = [each.replace("representatives", "repre&shy;senta&shy;tives") for each in PARAGRAPHS]
    shy = [each.replace("extraordinarily", "extra&shy;ordi&shy;nari&shy;ly") for each in shy]
    chromium(html(f"<h1>{TITLE}</h1><div>{paragraphs(tuple(shy))}</div>", two), "two-columns-browser.pdf")
    known("two-columns-browser.pdf", blocks(TITLE, *PARAGRAPHS))
    numbered = tuple(f"{number}. {each}" for number in range(1, 8) for each in PARAGRAPHS[:3])
    chromium(
        html(paragraphs(numbered), "body { line-height: 2 } @page { size: A5 }"),
        "head-and-foot-browser.pdf",
        furniture=True,
    )
    known("head-and-foot-browser.pdf", blocks(*numbered))


def pdf_from_libraries() -> None:
    from reportlab.lib.pagesizes import A4
    from reportlab.lib.utils import simpleSplit
    from reportlab.pdfgen import canvas

    # Both columns drawn line by line across the page, as some programs do.
    page = canvas.Canvas(str(FILES / "two-columns-by-line.pdf"), A4, invariant=True)
    page.setFont("Helvetica-Bold", 16)
    page.drawString(60, 780, TITLE)
    page.setFont("Helvetica", 10)
    plain = [
        each.replace("—", "-").replace("“", '"').replace("”", '"').replace("’", "'") for each in PARAGRAPHS
    ]
    sides = [
        [line for each in part for line in simpleSplit(each, "Helvetica", 10, 220)]
        for part in (plain[:3], plain[3:])
    ]
    for at in range(max(map(len, sides))):
        for side, left in zip(sides, (60, 320), strict=True):
            if at < len(side):
                page.drawString(left, 740 - 13 * at, side[at])
    page.save()
    known("two-columns-by-line.pdf", " ".join([TITLE, *plain]))

    page = canvas.Canvas(str(FILES / "encrypted.pdf"), A4, invariant=True, encrypt="password")
    page.drawString(60, 740, TITLE)
    page.save()

    # Words divided at the ends of lines, over three pages with heads and page numbers; one page turned.
    page = canvas.Canvas(str(FILES / "divided-words.pdf"), A4, invariant=True)
    lines = [
        "The repre-",
        "sentatives came to see the well-",
        "made wheel. It was fin-",
        "ished between 1990-",
        "1995.",
    ]
    for number in range(1, 5):
        page.setFont("Times-Roman", 9)
        page.drawString(60, 810, f"Harbour papers, volume {number}")
        page.drawCentredString(300, 30, f"- {number} -")
        page.setFont("Times-Roman", 12)
        for at, line in enumerate([f"Part {number} of the report on the well-made mill.", *lines]):
            page.drawString(60, 740 - 15 * at, line)
        page.showPage()
    page.save()
    text = "of the report on the well-made mill. The representatives came to see the well-made wheel. It was finished between 1990-1995."
    known("divided-words.pdf", blocks(*(f"Part {number} {text}" for number in range(1, 5))))

    from fpdf import FPDF

    made = FPDF(format="A5")
    made.set_creation_date(datetime(2026, 1, 1, tzinfo=timezone.utc))
    made.add_page()
    made.set_font("Times", size=11)
    for each in plain:
        made.multi_cell(0, 6, each, align="J")
        made.ln(4)
    made.output(str(FILES / "justified-fpdf.pdf"))
    known("justified-fpdf.pdf", blocks(*plain))


def from_office() -> None:
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.docx"
        docx_file(one)
        (FILES / "word.docx").write_bytes(one.read_bytes())
        known("word.docx", blocks(TITLE, *PARAGRAPHS, *ITEMS, table()))
        office(one, "pdf", "writer.pdf")
        known("writer.pdf", blocks(TITLE, *PARAGRAPHS, *ITEMS, table().replace("\t", " ")))
        office(one, "epub", "writer.epub")
        known("writer.epub", blocks(TITLE, *PARAGRAPHS, *ITEMS, table()))
        docx_file(two := Path(folder) / "two.docx", columns=2, head="Harbour papers, volume 7", repeat=3)
        office(two, "pdf", "two-columns-writer.pdf")
        known("two-columns-writer.pdf", blocks(TITLE, *PARAGRAPHS * 3, *ITEMS))
        office(two, "docx", "writer.docx")
        known("writer.docx", blocks(TITLE, *PARAGRAPHS * 3, *ITEMS))
        pptx_file(slides := Path(folder) / "slides.pptx")
        (FILES / "slides.pptx").write_bytes(slides.read_bytes())
        known("slides.pptx", blocks(SLIDES, NOTE))
        office(slides, "pdf", "impress.pdf")
        known("impress.pdf", SLIDES)
        office(slides, "pptx", "impress.pptx")
        known("impress.pptx", blocks(SLIDES, NOTE))


def web() -> None:
    menu = "<nav><a href='http://no.example/'>Home</a> <a href=x>Shop</a></nav>"
    body = f"{menu}<h1>{TITLE}</h1>{paragraphs()}<ul>{''.join(f'<li>{each}' for each in ITEMS)}</ul>{html_table()}"
    hidden = "<p hidden>Hidden.</p><p style='display:none'>Hidden, too.</p><footer>© Harbour papers</footer>"
    (FILES / "page.html").write_text(html(body + hidden), encoding="utf-8")
    known("page.html", blocks(TITLE, *PARAGRAPHS, "\n".join(ITEMS), table()))
    marks = PARAGRAPHS[0].replace("Ines Adair", "**Ines _Adair_**")
    rows = "\n".join(["| " + " | ".join(row) + " |" for row in TABLE])
    rows = rows.replace("\n", "\n|---|---|---|\n", 1)
    items = "\n".join(f"* {each}" for each in ITEMS)
    link = 'It is shown [on a map](https://no.example/map "Map") and in `mill.txt`.'
    source = f"---\ntitle: No text\n---\n# {TITLE}\n\n{marks}\n\n{link}\n\n{items}\n\n{rows}\n"
    (FILES / "notes.md").write_text(source, encoding="utf-8")
    shown = "It is shown on a map and in mill.txt."
    known("notes.md", blocks(TITLE, PARAGRAPHS[0], shown, "\n".join(ITEMS), table()))
    (FILES / "plain.txt").write_text(blocks(*PARAGRAPHS), encoding="utf-8")
    known("plain.txt", blocks(*PARAGRAPHS))
    book = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>',
        "OPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>'
        '<item id="b" href="two%20words.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/></manifest>'
        '<spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine></package>',
        "OPS/nav.xhtml": "<html><body><p>Contents</p></body></html>",
        "OPS/one.xhtml": html(f"<h1>{TITLE}</h1>" + paragraphs(PARAGRAPHS[:2])),
        "OPS/two words.xhtml": html(paragraphs(PARAGRAPHS[2:])),
    }
    with zipfile.ZipFile(FILES / "book.epub", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in book.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    known("book.epub", blocks(TITLE, *PARAGRAPHS))


if __name__ == "__main__":
    main()
