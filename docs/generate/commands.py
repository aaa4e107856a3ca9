"""The reference of commands: what ``tinyqa … --help`` prints."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator

from tinyqa_ray.cli import main

WIDTH = "96"
ABOUT = """# Commands

What `tinyqa COMMAND --help` prints, in whole. An option with `(required)` behind it must be given. Every
stage is also a job with the same options ([jobs](../how-to/clusters.md#jobs)), and its config a
[Python dataclass](configs.md) with the same fields.

| exit code | |
|---|---|
| 0 | it is done |
| 1 | a figure is below `--fail-below`, or the program is at fault |
| 2 | a mistake in the command or its inputs, told in one line |
| 75 | a store or the hub was busy for too long; the same command may succeed later |
| 130 | interrupted; the same command continues |
"""
VARIANTS = (
    ("evaluate", "--suite", "squad2"),
    ("distill", "--recipe", "tinyroberta"),
    ("distill", "--recipe", "mini"),
)
"""Calls whose help differs from that of their command."""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([ABOUT, *_sections()])


def names() -> list[str]:
    """The commands, in the order of ``tinyqa --help``."""
    listed = re.search(r"\{([\w,-]+)\}", _help())
    assert listed is not None
    return listed[1].split(",")


def _sections() -> Iterator[str]:
    for name in names():
        calls = [(name,), *(call for call in VARIANTS if call[0] == name)]
        for words in calls:
            level = "##" if len(words) == 1 else "###"
            yield f"{level} tinyqa {' '.join(words)}\n\n```text\n{_help(*words)}\n```\n"


def _help(*words: str) -> str:
    """What a command prints for ``--help``."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main.main([*words, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    text = re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())
    assert text.startswith("usage:"), words
    return "\n".join(line.rstrip() for line in text.splitlines())
