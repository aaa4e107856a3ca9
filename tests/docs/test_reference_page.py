"""The reference of Python lists what other programs may build on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pages
import pytest

import tinyqa_ray

PAGE = pages.ROOT / "docs" / "reference" / "python.md"
LISTED = re.findall(
    r"(?m)^::: ([\w.]+)",
    PAGE.read_text(encoding="utf-8") + PAGE.with_name("configs.md").read_text(encoding="utf-8"),
)


def imported() -> Iterator[tuple[str, str]]:
    """Modules of the package, and what a page imports from them."""
    for block in pages.blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tinyqa_ray."):
                yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize("name", tinyqa_ray.__all__)
def test_every_name_of_the_package_is_in_the_reference(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")
    assert name == "__version__" or name in {each.rpartition(".")[2] for each in LISTED}


@pytest.mark.parametrize(("module", "name"), sorted(set(imported())))
def test_what_a_page_imports_is_in_the_reference(module: str, name: str) -> None:
    own = [each for each in LISTED if f"{each}.".startswith(f"{module}.{name}.")]
    assert own or module in LISTED or name in tinyqa_ray.__all__


def test_ways_to_the_answers_of_a_reader_are_in_the_reference() -> None:
    shown = re.search(r"reader\.Reader\n.*?members: \[(.*?)\]", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    members = set(shown[1].split(", "))
    assert {"answer", "answer_many", "evidence"} <= members <= set(vars(tinyqa_ray.Reader))
