"""Links of pages that are read without the site, such as README on a forge, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pages
import pytest

MADE = {"reference/commands.md", "reference/http.md", "figures.md", "notebook.md"}
"""Pages that exist in the site only."""


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as forges and MkDocs make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"[ -]+", "-", heading) for heading in plain}


@pytest.mark.parametrize(
    "page", [*pages.PAGES, pages.ROOT / "CHANGELOG.md"], ids=lambda page: str(page.relative_to(pages.ROOT))
)
def test_links_of_a_page_hold(page: Path) -> None:
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if (
            target.is_relative_to(pages.ROOT / "docs")
            and str(target.relative_to(pages.ROOT / "docs")) in MADE
        ):
            assert page.is_relative_to(pages.ROOT / "docs"), f"{link}: there in the site only"
            continue
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link
