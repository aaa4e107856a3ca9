"""When the files of a run's folder were written."""

from __future__ import annotations

from pathlib import Path


def times(folder: Path) -> dict[str, int]:
    """Nanoseconds by name; not of what notes the inputs, which is written once these are old enough."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "_INPUTS.json"]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}
