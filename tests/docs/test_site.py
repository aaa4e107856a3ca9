"""The site is built offline and strictly: no link of it is broken, and no page of it needs a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from tinyqa_ray import configs
from tinyqa_ray.cli import main

pytest.importorskip("mkdocs", reason="the extra docs is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=pages.ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(pages.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def html(site: Path, page: str) -> str:
    return (site / page).read_text(encoding="utf-8")


def test_no_page_loads_anything_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preload|icon)"[^>]* href="([^"]+)"', text)
        assert not [each for each in loaded if re.match(r"(https?:)?//", each)], page


def test_every_command_and_its_options_are_in_the_reference(site: Path) -> None:
    text = html(site, "reference/commands.html")
    for name in main._commands:
        assert f">tinyqa {name}<" in text, name
    for option in (
        "--max-answer-tokens",
        "--fit-threshold",
        "--student-layers",
        "--max-f1-drop",
        "--drain-s",
    ):
        assert option in text


def test_every_config_is_in_the_reference_with_its_fields(site: Path) -> None:
    text = html(site, "reference/configs.html")
    for name in configs.__all__:
        made = getattr(configs, name)
        for field in getattr(made, "__dataclass_fields__", ()):
            assert f"tinyqa_ray.configs.{name}.{field}" in text or f"{name}.{field}" in text, field


def test_requests_and_errors_of_the_server_are_in_the_reference(site: Path) -> None:
    text = html(site, "reference/http.html")
    for words in ("POST /v1/answer", "max_answer_len", "na_prob", "429", "most items 100", "Problem"):
        assert words in text, words


def test_files_that_pages_link_to_are_in_the_site(site: Path) -> None:
    assert "benchmarks/reader.py" in html(site, "benchmarks.html")
    assert (site / "source" / "benchmarks" / "reader.py.txt").read_bytes().startswith(b'"""')
