"""A page made of a notebook: its text, its code, and what the code printed and drew."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ABOUT = '*This page is <a href="{name}">a notebook</a> with the outputs of its last run.*'


def page(path: Path) -> str:
    """The page, in Markdown, with pictures within it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    first, *rest = [part for cell in cells for part in _cell(cell)]
    return "\n\n".join([first, ABOUT.format(name=path.name), *rest])


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            picture = "".join(data["image/png"]).strip()
            yield f'<img alt="what the code drew" src="data:image/png;base64,{picture}">'
        elif text := "".join(output.get("text") or data.get("text/plain", ())):
            yield f"```text\n{text.rstrip()}\n```"
