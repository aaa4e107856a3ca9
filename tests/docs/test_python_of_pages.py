"""Python in the pages compiles, what it imports is there, and what needs no server or store runs."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pages
import pytest

from tinyqa_ray.core import bundled

PYTHON = pages.blocks("python")
NOT_RUN = re.compile(
    # A store, a server, hours, a file or an index of one's own.
    r"s3://|http://127|LARGE|serve\.run|out/mini|EvaluateConfig\(data|first_pass=|mill\.pdf|retriever"
)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_what_a_block_imports_is_there(block: pages.Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("block", [block for block in PYTHON if not NOT_RUN.search(block.text)], ids=str)
def test_block_runs(block: pages.Block, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the package's model in the place of those on the hub."""
    monkeypatch.chdir(pages.ROOT)
    if "haystack" in block.text:
        pytest.importorskip("haystack")
    text = re.sub(r"deepset/[\w-]+", bundled.located(bundled.MODEL), block.text)
    namespace: dict[str, Any] = {}
    exec(compile(text, str(block), "exec"), namespace)
