"""The notebook of the documentation runs, and says what it said when it was kept."""

from __future__ import annotations

import runpy
from pathlib import Path

import pages
import pytest

nbformat = pytest.importorskip("nbformat", reason="it needs Python 3.11")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = pages.ROOT / "docs" / "notebook.ipynb"


def printed(notebook: object) -> list[str]:
    """What each cell printed or gave."""
    return [
        "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
        for cell in notebook.cells  # type: ignore[attr-defined]
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def test_kept_outputs_hold_no_error_and_are_small() -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 100_000
    assert all(cell.execution_count for cell in kept.cells if cell.cell_type == "code")
    assert not [
        each for cell in kept.cells for each in cell.get("outputs", ()) if each.output_type == "error"
    ]


@pytest.mark.slow
def test_notebook_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    monkeypatch.setenv("TINYQA_QUESTIONS", "20")
    executed = runpy.run_path(str(pages.ROOT / "docs" / "generate" / "run_notebook.py"))["executed"]
    again, kept = printed(executed(NOTEBOOK)), printed(nbformat.read(NOTEBOOK, as_version=4))
    assert len(again) == len(kept)
    # Figures differ in their last digits from machine to machine; answers do not.
    assert again[1] == kept[1] == "'Robert Boyle'"
    assert "lavoisier" in again[2].splitlines()[0]
    assert again[-2].startswith("20 questions, ")
