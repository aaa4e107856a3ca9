"""The map of CONTRIBUTING.md names files that are there."""

from __future__ import annotations

import re

import pages

PAGE = pages.ROOT / "CONTRIBUTING.md"
PACKAGE = pages.ROOT / "tinyqa_ray"


def absent() -> list[str]:
    """Files in the table that are not there; a name alone may lie beside the one named before it."""
    missing = []
    for row in re.findall(r"(?m)^\| .*\|$", PAGE.read_text(encoding="utf-8")):
        beside = PACKAGE
        for name in re.findall(r"`([\w/]+(?:\.\w+|/))`", row):
            places = [root / name for root in (PACKAGE, pages.ROOT, beside) if (root / name).exists()]
            if places:
                beside = places[0].parent
            else:
                missing.append(name)
    return missing


def test_files_that_the_map_names_are_there() -> None:
    assert absent() == []
