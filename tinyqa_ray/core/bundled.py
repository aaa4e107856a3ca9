"""The model that the package carries, by name: its folder, and its int8 form, made on first use."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from filelock import FileLock

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.version import __version__

_log = logging.getLogger(__name__)

MODEL = "tinyqa-mini"
"""Name that stands for the model in the package, on every machine that has it; see MODEL_CARD.md."""
INT8 = "tinyqa-mini-int8"
"""Name of its int8 form, which each machine makes for itself."""


def asset(name: str) -> str:
    """Path of a file that the package carries (see its ATTRIBUTION.md)."""
    return str(files("tinyqa_ray") / "assets" / name)


def located(name: str) -> str:
    """Folder of a shipped model, made first where need be; any other name as it is.

    A folder of the user's with such a name is the user's folder.

    Raises:
        InputError: the int8 form cannot be made.
    """
    if name not in (MODEL, INT8) or Path(name).exists():
        return name
    return asset(MODEL) if name == MODEL else str(_int8())


def source(name: str) -> str:
    """Folder whose content decides what a model answers: each machine makes its own int8 form of the same."""
    return asset(MODEL) if name in (MODEL, INT8) and not Path(name).exists() else name


def cache() -> Path:
    """Folder of what is made on first use: ``$XDG_CACHE_HOME/tinyqa-ray``, else ``~/.cache/tinyqa-ray``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyqa-ray"


def _int8() -> Path:
    """The int8 form, made once for these weights and thresholds by this version."""
    model = Path(asset(MODEL))
    content = b"".join((model / file).read_bytes() for file in ("model.safetensors", "tinyqa.json"))
    digest = hashlib.sha256(content + __version__.encode()).hexdigest()[:12]
    folder = cache() / f"{INT8}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # actors of one machine may come at once
            if not folder.is_dir():
                _export(folder)
    return folder


def _export(folder: Path) -> None:
    """Export in a process of its own, which takes NNCF's memory and noise with it; whole or not at all."""
    _log.warning("making the int8 form of %s, once, into %s", MODEL, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "export"
        command = [sys.executable, "-m", "tinyqa_ray", "export", "--output", str(made)]
        # Enough to find a form that is broken; what this one costs in F1 was measured on more questions.
        command += ["--calibration-questions", "100", "--check-questions", "200", "--max-f1-drop", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"{INT8}: could not be made ({reason.removeprefix('tinyqa: ')})")
        shutil.move(made, folder)
