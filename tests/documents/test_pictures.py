from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest

pytest.importorskip("pypdfium2", reason="needs the extra documents")

from PIL import Image

from tinyqa_ray.documents import UnreadableError, read_document
from tinyqa_ray.documents.pictures import marked_picture

DATA = (Path(__file__).parent / "files" / "divided-words.pdf").read_bytes()
YELLOW, INK = (255, 228, 110), (0, 0, 0)


def test_answer_is_marked_where_it_is_drawn() -> None:
    document = read_document("a.pdf", DATA)
    start = document.text.index("Part 2")
    boxes = document.places.boxes(start, start + len("Part 2"))
    head, data = marked_picture(DATA, boxes).split(",", 1)
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    width, height = document.places.pages[1].width, document.places.pages[1].height
    assert width is not None
    assert height is not None
    scale = picture.width / width
    assert picture.height < height * scale / 2
    lit = [(x, y) for x in range(picture.width) for y in range(picture.height) if near(picture, x, y, YELLOW)]
    assert min(x for x, _ in lit) == pytest.approx(60 * scale, abs=2)
    assert max(x for x, _ in lit) == pytest.approx((60 + 12 * 2.361) * scale, abs=2)
    # The letters show through the mark.
    dark = [1 for x, y in lit if x + 1 < picture.width and sum(picture.getpixel((x + 1, y))) < 300]  # type: ignore[arg-type]
    assert len(dark) > 10


def near(picture: Image.Image, x: int, y: int, colour: tuple[int, int, int]) -> bool:
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return all(abs(one - other) < 12 for one, other in zip(found, colour, strict=True))


def test_page_that_is_not_there_is_unreadable() -> None:
    box = read_document("a.pdf", DATA).places.boxes(0, 4)[0]
    with pytest.raises(UnreadableError, match="cannot be drawn"):
        marked_picture(DATA, [type(box)(99, box.left, box.top, box.right, box.bottom)])
    with pytest.raises(UnreadableError, match="cannot be drawn"):
        marked_picture(b"%PDF-1.7", [box])
