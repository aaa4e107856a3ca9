"""docs/documents.md says what is so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents import SUFFIXES

PAGE = (Path(__file__).parents[2] / "docs" / "documents.md").read_text(encoding="utf-8")


def test_every_format_and_every_limit_is_there() -> None:
    assert {suffix for suffix in SUFFIXES if f"`{suffix}`" not in PAGE} == set()
    options = {f"--{field.name.replace('_', '-')}" for field in fields(DocumentLimits)}
    assert options - set(re.findall(r"--max-[a-z-]+", PAGE)) == set()


def test_limits_in_the_errors_are_the_defaults() -> None:
    limits = DocumentLimits()
    for words in (
        f"over the limit of {limits.max_file_bytes} |",
        f"over the limit of {limits.max_file_characters} |",
        f"unpacks to more than {limits.max_unpacked_bytes >> 20} MiB",
        f"over the limit of {limits.max_file_pages} |",
        f"takes longer than {limits.max_file_core_s:g} seconds of a core",
        f"takes longer than {limits.max_file_s:g} seconds |",
        f"takes more than {limits.max_file_memory_bytes >> 20} MiB of memory",
    ):
        assert words in PAGE


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_python_of_the_page_compiles(block: str) -> None:
    compile(block, "documents.md", "exec")
