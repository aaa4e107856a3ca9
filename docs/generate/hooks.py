"""Hooks of MkDocs: pages made from the code, and links that leave docs/ made to work in the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import commands
import endpoints
import figures
import notebook
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
ELSEWHERE = {
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "MODEL_CARD.md": "model-card.md",
    "deploy/README.md": "deploy.md",
    "README.md": "index.md",
}
"""Pages of the site by files outside docs/; a link to README leads to the site's first page."""
MADE = {
    "reference/commands.md": commands.page,
    "reference/http.md": endpoints.page,
    "figures.md": figures.page,
    "notebook.md": lambda: notebook.page(ROOT / "docs" / "notebook.ipynb"),
}
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_SHOWN = (".svg", ".png", ".json")
"""Endings of files that a browser shows under their own names; others are shown as text."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, those that lie elsewhere, and the files that pages link to."""
    for uri, make in MADE.items():
        files.append(File.generated(config, uri, content=make()))
    for path, uri in ELSEWHERE.items():
        if uri != "index.md":
            files.append(File.generated(config, uri, content=(ROOT / path).read_text(encoding="utf-8")))
    linked = {path for file in files.documentation_pages() for path in _sources(file)}
    for path in sorted(linked):
        files.append(File.generated(config, _source_uri(path), content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at pages and at copies of the repository's files."""
    origin = _origin(page.file.src_uri)

    def changed(match: re.Match[str]) -> str:
        uri = _uri(origin, match[2])
        if uri is None:
            return match[0]
        target, hash_, anchor = uri.partition("#")
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{match[1]}{posixpath.relpath(target, here)}{hash_}{anchor}{match[3]}"

    return "".join(part if code else _LINK.sub(changed, part) for part, code in _without_code(markdown))


def _sources(file: File) -> Iterator[str]:
    """Files of the repository, outside docs/, that a page links to."""
    for part, code in _without_code(file.content_string):
        for match in () if code else _LINK.finditer(part):
            path = _path(_origin(file.src_uri), match[2])
            if path and path not in ELSEWHERE and not path.startswith("docs/") and (ROOT / path).is_file():
                yield path


def _without_code(markdown: str) -> Iterator[tuple[str, bool]]:
    """The parts of a page, each with whether it is a block of code."""
    for number, part in enumerate(re.split(r"(?ms)(^ *```.*?^ *```$)", markdown)):
        yield part, number % 2 == 1


def _origin(uri: str) -> str:
    """The file of the repository that a page is made of."""
    there = {page: path for path, page in ELSEWHERE.items() if page != "index.md"}
    return there.get(uri, f"docs/{uri}")


def _path(origin: str, link: str) -> str | None:
    """The path in the repository that a relative link names; None for other links."""
    if re.match(r"[a-z]+:|#|/", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link.partition("#")[0]))


def _uri(origin: str, link: str) -> str | None:
    """Where a link leads in the site; None if it stays as it is."""
    path = _path(origin, link)
    if path is None:
        return None
    if path in ELSEWHERE:
        uri = ELSEWHERE[path]
    elif path.startswith("docs/"):
        uri = path.removeprefix("docs/").replace("notebook.ipynb", "notebook.md")
    elif (ROOT / path).is_file():
        return _source_uri(path)
    else:
        return None
    _, hash_, anchor = link.partition("#")
    return f"{uri}{hash_}{anchor}"


def _source_uri(path: str) -> str:
    return f"source/{path}" if path.endswith(_SHOWN) else f"source/{path}.txt"
