"""The wheel, built from the sdist, answers in an environment that has nothing of the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the extra dev is not installed")

ROOT = Path(__file__).parents[2]
CONTEXT = "In the late 17th century, Robert Boyle proved that air is necessary for combustion."
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    here = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    ran = subprocess.run(
        [sys.executable, "-m", "build", *here, "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode and not here:
        pytest.skip(f"hatchling is not installed, and could not be fetched: {ran.stderr[-300:]}")
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel; its libraries are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    (wheel,) = dist.glob("*.whl")
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True
    )
    (own,) = (folder / "lib").glob("python*/site-packages")
    # A folder that a .pth names adds its packages, but not what its own .pth files name: not the checkout.
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"], encoding="utf-8")
    return programs


def run(program: Path, *words: str, folder: Path) -> str:
    """What a program prints, run in a folder without the variables of this test run."""
    clean = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    offline = {"HF_HUB_OFFLINE": "1", "TINYQA_ENGINE": "torch-fp32"}
    ran = subprocess.run(
        [program, *words], cwd=folder, env=clean | offline, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_wheel_answers_where_there_is_no_checkout(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import tinyqa_ray; print(tinyqa_ray.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    said = run(
        installed / "tinyqa",
        *("ask", "Who proved that air is necessary for combustion?", "--context", CONTEXT),
        folder=tmp_path,
    )
    assert said.startswith("Robert Boyle\n")


def test_wheel_holds_the_model_the_page_and_no_tests(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "tinyqa_ray/assets/tinyqa-mini/model.safetensors",
        "tinyqa_ray/assets/squad2_train.json",
        "tinyqa_ray/serve/page.html",
        "tinyqa_ray/py.typed",
    ):
        assert needed in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tinyqa_ray"}
    assert wheel.stat().st_size < 60_000_000


def test_sdist_holds_what_a_checkout_needs(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "mkdocs.yml"} <= names
    assert "jobs/pipeline.py" in names
    assert "docs/index.md" in names
