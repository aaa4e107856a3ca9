"""The part of a PDF's page around an answer, as a picture with the answer marked."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import pypdfium2
from PIL import Image, ImageChops, ImageDraw

from tinyqa_ray.documents.document import UnreadableError
from tinyqa_ray.documents.pdf import LOCK
from tinyqa_ray.documents.places import Box

_AROUND = 80.0
"""Points shown above and below the answer."""
_LONGEST = 1500
"""Most pixels of the longer side of the whole page, whatever size in points the file states."""
_MARK = (255, 228, 110)


def marked_picture(data: bytes, boxes: Sequence[Box]) -> str:
    """Draw the page of the first of ``boxes``, at least one, near them; return a ``data:`` URL of a PNG.

    Raises:
        UnreadableError: the page cannot be drawn.
    """
    first = boxes[0].page
    own = [box for box in boxes if box.page == first]
    with LOCK:
        try:
            with pypdfium2.PdfDocument(data) as document:
                page = document[first - 1]
                width, height = page.get_size()
                scale = min(2.0, _LONGEST / max(width, height, 1.0))
                top = max(0.0, min(box.top for box in own) - _AROUND)
                bottom = min(height, max(box.bottom for box in own) + _AROUND)
                # What is cut off at the left, bottom, right and top, in points.
                cut = (0, height - bottom, 0, top)
                picture = page.render(scale=scale, crop=cut, may_draw_forms=False).to_pil().convert("RGB")
        except (pypdfium2.PdfiumError, ValueError, IndexError) as error:
            raise UnreadableError(f"has a page {first} that cannot be drawn ({error})") from None
    mark = Image.new("RGB", picture.size, "white")
    draw = ImageDraw.Draw(mark)
    for box in own:
        sides = (box.left, box.top - top, box.right, box.bottom - top)
        draw.rectangle([side * scale for side in sides], fill=_MARK)
    sink = io.BytesIO()
    # A palette is a third of the size, and enough for text.
    ImageChops.multiply(picture, mark).quantize(64).save(sink, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode()
