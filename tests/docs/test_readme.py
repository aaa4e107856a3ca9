"""README is short, and its pictures are there."""

from __future__ import annotations

import struct

import pages
import pytest

README = (pages.ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("name", ["page", "report"])
def test_picture_is_shown_and_small(name: str) -> None:
    assert f"docs/pictures/{name}.png" in README
    data = (pages.ROOT / "docs" / "pictures" / f"{name}.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data.startswith(b"\x89PNG")
    assert len(data) < 300_000
    assert min(width, height) >= 300
