"""The page of all figures: every file of benchmarks/results/, with its machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ABOUT = """# All figures

Every file of `benchmarks/results/`, as its script wrote it, and the machine it was taken on. Long lists and
examples are left out here; the files have them. [What the figures say](benchmarks.md).
"""
MOST_ROWS = 80
_LONGEST = 60
_APART = ("benchmark", "machine", "versions")


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([ABOUT, *(_section(path) for path in sorted(RESULTS.glob("*.json")))])


def machine(of: dict[str, Any]) -> str:
    """A machine in a few words."""
    known = of.get("has") or of.get("isa") or ()
    versions = (f"{name} {of[name]}" for name in ("python", "torch", "transformers", "ray") if name in of)
    return f"{of['cores']} cores of an {of['processor']} ({', '.join(known)}); {', '.join(versions)}"


def _section(path: Path) -> str:
    figures = json.loads(path.read_text(encoding="utf-8"))
    table = [row for name, value in figures.items() if name not in _APART for row in _rows(name, value)]
    rows = [f"| {name} | {value} |" for name, value in table[:MOST_ROWS]]
    if len(table) > MOST_ROWS:
        rows.append(f"| … | {len(table) - MOST_ROWS} further figures are in the file |")
    where = machine(figures["machine"]) if "machine" in figures else "a machine that the file does not name"
    links = f"[file](../benchmarks/results/{path.name})"
    if (RESULTS.parent / f"{path.stem}.py").is_file():
        links = f"[script](../benchmarks/{path.stem}.py), {links}"
    return f"## {path.stem}\n\n{where}. {links}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _rows(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names and values of the figures in a value, however deep."""
    if isinstance(value, dict):
        if {"median", "min", "max"} <= value.keys():
            yield name, f"{_shown(value['median'])} ({_shown(value['min'])} to {_shown(value['max'])})"
        elif set(value) == {"mean", "std"}:
            yield name, f"{_shown(value['mean'])} ± {_shown(value['std'])}"
        else:
            for key, each in value.items():
                if key not in _APART:
                    yield from _rows(f"{name}: {key}", each)
    elif isinstance(value, list):
        if all(isinstance(each, (int, float, str)) for each in value):
            yield from _rows(name, ", ".join(map(_shown, value)))
    elif not (isinstance(value, str) and len(value) > _LONGEST):
        yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        if value == 0 or not math.isfinite(value):
            return str(value)
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if digits else text
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
