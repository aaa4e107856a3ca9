"""The pages that people read, and the code in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "MODEL_CARD.md", "CONTRIBUTING.md", "deploy/README.md")),
    ]
)


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """All blocks of some languages, in the order of pages and lines."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += [
            Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
            for match in re.finditer(r"(?ms)^```(\w+)\n(.*?)^```$", text)
            if match[1] in languages
        ]
    return found


def calls(block: Block) -> Iterator[list[str]]:
    """The simple commands of a block of shell, as words, without comments and redirections."""
    text = re.sub(r"<<'(\w+)'.*?^\1$", "", block.text.replace("\\\n", " "), flags=re.DOTALL | re.MULTILINE)
    for line in text.splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        call: list[str] = []
        into_file = False
        for word in [*words, ";"]:
            if into_file:
                into_file = False
            elif word == ">":
                into_file = True
            elif word == "--" or set(word) <= set("();&|"):
                # Behind a lone "--" the words are a command of their own: ray job submit … -- python …
                if call:
                    yield call
                call = []
            else:
                call.append(word)


def links(page: Path) -> Iterator[str]:
    """The relative links of a page, without those in code."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            yield link
