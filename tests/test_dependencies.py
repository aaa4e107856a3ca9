"""The default set is enough: what an extra brings is imported only where that extra is asked for."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import tinyqa_ray

ROOT = Path(tinyqa_ray.__file__).parent
DEFAULT = {
    *("Stemmer", "bm25s", "datasets", "fastapi", "filelock", "huggingface_hub", "matplotlib", "numpy"),
    *("prometheus_client", "pyarrow", "pydantic", "ray", "rich", "safetensors", "tensorboardX"),
    *("tokenizers", "torch", "transformers", "tyro"),
    # of FastAPI, of the hub's client, and of Ray
    *("starlette", "fsspec", "typing_extensions"),
}
"""Modules of the project's own dependencies, and of theirs that it rests on."""
OF_EXTRAS = {
    "cpu": {"nncf", "onnx", "onnxruntime", "openvino"},
    "deepspeed": {"deepspeed"},
    "documents": {"PIL", "lxml", "markdown_it", "pypdfium2"},
    "haystack": {"haystack", "haystack_integrations"},
    "langchain": {"langchain_core"},
    "llamaindex": {"llama_index"},
    "mcp": {"mcp", "uvicorn"},
    "mlflow": {"mlflow"},
}
WHERE = {
    "cpu": ("export", "engines"),
    "deepspeed": ("distill",),
    "documents": ("documents",),
    "haystack": ("integrations",),
    "langchain": ("integrations",),
    "llamaindex": ("integrations",),
    "mcp": ("integrations",),
    "mlflow": ("distill",),
}
"""Folders that may import the modules of an extra."""


def imports(path: Path) -> set[str]:
    """Roots of the modules that a file imports, at its top or in its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"tinyqa_ray"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_the_default_set_or_its_own_extra(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    allowed = DEFAULT.union(*(OF_EXTRAS[extra] for extra, folders in WHERE.items() if folder in folders))
    assert imports(path) <= allowed


def test_what_only_extras_bring_is_not_loaded_by_the_shell() -> None:
    assert not imports(ROOT / "cli" / "main.py") & set().union(*OF_EXTRAS.values())
