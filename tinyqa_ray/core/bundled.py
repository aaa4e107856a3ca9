"""The model that the package ships: its name, its folder, and its int8 form, which is made on first use."""

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
"""Name of the model that the package ships, the same on every machine; see MODEL_CARD.md."""
INT8 = "tinyqa-mini-int8"
"""Name of its int8 form, which each machine makes for itself."""


def asset(name: str) -> str:
    """Path of a file that the package ships (see ATTRIBUTION.md beside it)."""
    return str(files("tinyqa_ray") / "assets" / name)


def located(name: str) -> str:
    """Return the folder of a shipped model, made first if it is absent; return any other name as it is.

    If the user has a folder of that name, the user's folder is meant.

    Raises:
        InputError: the int8 form cannot be made.
    """
    if name not in (MODEL, INT8) or Path(name).exists():
        return name
    return asset(MODEL) if name == MODEL else str(_int8())


def source(name: str) -> str:
    """Folder whose content identifies a model; for the int8 form, the model that it is made from."""
    return asset(MODEL) if name in (MODEL, INT8) and not Path(name).exists() else name


def cache() -> Path:
    """Folder for things made on first use: ``$XDG_CACHE_HOME/tinyqa-ray``, else ``~/.cache/tinyqa-ray``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyqa-ray"


def _int8() -> Path:
    """Folder of the int8 form, made once for these weights, these settings and this package version."""
    model = Path(asset(MODEL))
    content = b"".join((model / file).read_bytes() for file in ("model.safetensors", "tinyqa.json"))
    digest = hashlib.sha256(content + __version__.encode()).hexdigest()[:12]
    folder = cache() / f"{INT8}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # several actors of one machine may get here at once
            if not folder.is_dir():
                _export(folder)
    return folder


def _export(folder: Path) -> None:
    """Export in a separate process, which keeps NNCF's memory and output apart; then move the result here."""
    _log.warning("making the int8 form of %s, once, into %s", MODEL, folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "export"
        command = [sys.executable, "-m", "tinyqa_ray", "export", "--output", str(made)]
        # These are enough to detect a broken export; its loss of F1 was measured on more questions.
        command += ["--calibration-questions", "100", "--check-questions", "200", "--max-f1-drop", "3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"{INT8}: could not be made ({reason.removeprefix('tinyqa: ')})")
        shutil.move(made, folder)
