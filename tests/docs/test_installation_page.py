"""docs/installation.md says what was measured, of every extra and every Python that is allowed."""

from __future__ import annotations

import json
import re

import pages
import pytest

PAGE = (pages.ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
PROJECT = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
MEASURED = json.loads(
    (pages.ROOT / "benchmarks" / "results" / "installation.json").read_text(encoding="utf-8")
)


def row(start: str) -> str:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {start} |"))
    return line


EXTRAS = PROJECT.partition("optional-dependencies]")[2].partition("[project.scripts]")[0]


@pytest.mark.parametrize("extra", re.findall(r"(?m)^(\w+) = \[", EXTRAS))
def test_every_extra_is_on_the_page_with_its_size(extra: str) -> None:
    size = MEASURED["sizes"]["extras"].get(extra)
    assert row(f"`{extra}`")
    assert size is None or row(f"`{extra}`").endswith(f" {size['mb']:,} |")


def test_what_an_installation_takes_is_what_was_measured() -> None:
    taken = MEASURED["installed"]
    assert f"{taken['download_mb']} MB, in {taken['download_s']} s" in row("downloaded")
    assert f"{taken['on_disk_mb']:,} MB" in row("on disk")
    assert f"{taken['first_ask_s']} s / {taken['next_ask_s']} s" in PAGE


def test_pythons_of_the_page_are_those_allowed_and_found() -> None:
    low, high = map(int, re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', PROJECT)[0])
    for minor in range(low, high):
        found = MEASURED["python"][f"3.{minor}"]
        assert found["resolves"], found
        assert ("**run**" in row(f"3.{minor}")) == (MEASURED["run_on"] == f"3.{minor}")


def test_every_variable_of_the_package_is_on_the_page() -> None:
    read = {
        name
        for path in (pages.ROOT / "tinyqa_ray").rglob("*.py")
        for name in re.findall(r"\bTINYQA_[A-Z_]+\b", path.read_text(encoding="utf-8"))
    }
    assert set(re.findall(r"`(TINYQA_[A-Z_]+)`", PAGE)) == read


def test_folders_of_the_page_are_those_that_are_used() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (pages.ROOT / "tinyqa_ray").rglob("*.py"))
    for name in re.findall(r"~/\.cache/tinyqa-ray/(\w+)", PAGE):
        assert f'"{name}"' in code, name
    for name in re.findall(r"\$TMPDIR/tinyqa-(\w+)-UID", PAGE):
        assert f'private_folder("{name}")' in code or f'node_copy("{name}"' in code, name
