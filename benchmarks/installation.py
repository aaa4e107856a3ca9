"""What an installation takes: seconds, megabytes, packages; and for which Pythons there are wheels.

    python benchmarks/installation.py --install --resolve 3.10 3.11 3.12 3.13 3.14

``--install`` builds the wheel, downloads what the default set needs, installs it into a new environment from
there, and asks the package's model a question with it, twice. ``--resolve`` asks the package index for each
Python, installing nothing. Sizes of extras are those of the environment that runs this: what each adds to
the default set.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from machine import show
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = (
    *("cpu", "documents", "mcp", "langchain", "llamaindex", "haystack", "deepspeed", "mlflow", "quickstart"),
    *("tensorboard", "docs", "dev"),
)
RUN_ON = "{}.{}".format(*sys.version_info[:2])
ASK = (
    *("ask", "Who proved that air is necessary for combustion?"),
    *("--context", "In the late 17th century, Robert Boyle proved that air is necessary for combustion."),
)


def requirements(name: str, extras: tuple[str, ...]) -> list[str] | None:
    """What a distribution asks for, this project's as its checkout says; None if it is not installed."""
    if name == PROJECT["name"]:
        chosen = [PROJECT["optional-dependencies"][extra] for extra in extras]
        return [text for each in (PROJECT["dependencies"], *chosen) for text in each]
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None


def needed(requirement: str) -> set[str]:
    """Names of the installed distributions that a requirement needs, directly or not."""
    todo, seen = [Requirement(requirement)], set()
    while todo:
        each = todo.pop()
        key = (re.sub("[-_.]+", "-", each.name).lower(), tuple(sorted(each.extras)))
        found = requirements(*key)
        if found is None or key in seen:
            continue
        seen.add(key)
        for further in map(Requirement, found):
            asked = ("", *each.extras)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in asked):
                todo.append(further)
    return {name for name, _ in seen} - {PROJECT["name"]}


def megabytes(names: set[str]) -> float:
    """Size of the files of installed distributions."""
    files = [file.locate() for name in names for file in importlib.metadata.distribution(name).files or []]
    return sum(path.stat().st_size for path in map(Path, map(str, files)) if path.exists()) / 1e6


def sizes() -> dict[str, Any]:
    """Megabytes and packages of the default set, and what each extra adds to them."""
    base = needed("tinyqa-ray")
    sets = {extra: needed(f"tinyqa-ray[{extra}]") - base for extra in EXTRAS}
    return {
        "default": {"packages": len(base), "mb": round(megabytes(base))},
        "torch_mb": round(megabytes({"torch"})),
        "extras": {
            name: {"packages": len(more), "mb": round(megabytes(more))} for name, more in sets.items()
        },
    }


def seconds(*command: str, cwd: Path | None = None) -> float:
    """How long a command takes; its failure is shown."""
    began = time.perf_counter()
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return time.perf_counter() - began


def installed() -> dict[str, Any]:
    """Build, download and install the default set into a new environment, and ask with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), cwd=ROOT)
        (wheel,) = (folder / "dist").iterdir()
        wheels, python = folder / "wheels", folder / "venv" / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--quiet")
        download = seconds(*pip, "download", "--no-cache-dir", "-c", str(PINS), "-d", str(wheels), str(wheel))
        venv.create(folder / "venv", with_pip=True)
        offline = ("--no-cache-dir", "--no-index", "--find-links", str(wheels))
        install = seconds(str(python), "-m", "pip", "--quiet", "install", *offline, str(wheel))
        tinyqa = str(python.with_name("tinyqa"))
        asked = [seconds(tinyqa, *ASK, cwd=folder) for _ in range(2)]
        files = [path for path in (folder / "venv").rglob("*") if path.is_file() and not path.is_symlink()]
        return {
            "packages": len(list(wheels.iterdir())),
            "wheel_mb": round(wheel.stat().st_size / 1e6, 1),
            "download_mb": round(sum(path.stat().st_size for path in wheels.iterdir()) / 1e6),
            "download_s": round(download),
            "install_s": round(install),
            "on_disk_mb": round(sum(path.stat().st_size for path in files) / 1e6),
            "first_ask_s": round(asked[0], 1),
            "next_ask_s": round(asked[1], 1),
        }


def pins_for(python: str) -> str:
    """The lines of ``constraints.txt`` that hold for a Python."""
    lines = []
    for line in PINS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate(
                {"python_version": python, "python_full_version": f"{python}.9"}
            ):
                lines.append(line.partition(";")[0])
    return "\n".join(lines)


def resolved(python: str, extras: tuple[str, ...] = ()) -> dict[str, Any]:
    """Whether every dependency has a wheel for a Python, at the pinned versions.

    pip judges the markers of dependencies, and what Python they require, by the Python that it runs on; the
    latter is checked here instead.
    """
    chosen = [PROJECT["optional-dependencies"][extra] for extra in extras]
    dependencies = [text for each in (PROJECT["dependencies"], *chosen) for text in each]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pins.txt").write_text(pins_for(python), encoding="utf-8")
        # With pins, pip refuses some of its own choices because of the Python that it runs on.
        for ignoring in ((), ("--ignore-requires-python",)):
            ran = subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                    *("--report", "report.json", "--only-binary", ":all:", "--python-version", python),
                    *("--target", "target", "-c", "pins.txt", *ignoring, *dependencies),
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            if "requires a different Python" not in ran.stderr:
                break
        if ran.returncode:
            errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
            return {"resolves": False, "said": errors[-2:]}
        installs = json.loads((folder / "report.json").read_text(encoding="utf-8"))["install"]
    wrong = [
        each["metadata"]["name"]
        for each in installs
        if not SpecifierSet(each["metadata"].get("requires_python") or "").contains(f"{python}.9")
    ]
    return {
        "resolves": not wrong,
        "packages": len(installs),
        **({"need_another_python": wrong} if wrong else {}),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install into a new environment, timed")
    parser.add_argument("--resolve", nargs="*", default=[], metavar="3.X", help="Pythons to find wheels for")
    asked = parser.parse_args()
    figures: dict[str, Any] = {"run_on": RUN_ON, "sizes": sizes()}
    everything = figures["sizes"]["default"]["mb"] + figures["sizes"]["extras"]["dev"]["mb"]
    figures["default_share_of_everything"] = round(figures["sizes"]["default"]["mb"] / everything, 2)
    if asked.install:
        figures["installed"] = installed()
    figures["python"] = {python: resolved(python) for python in asked.resolve}
    figures["python_with_cpu_and_documents"] = {
        python: resolved(python, ("cpu", "documents")) for python in asked.resolve
    }
    show("installation", figures)


if __name__ == "__main__":
    main()
