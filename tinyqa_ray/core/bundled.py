"""The model that the package ships: its name, its folder, and its int8 form, which is made on first use."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import subprocess
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.version import __version__

_log = logging.getLogger(__name__)

MODEL = "tinyqa-mini"
"""Name of the model that the package ships, the same on every machine; see MODEL_CARD.md."""
INT8 = "tinyqa-mini-int8"
"""Name of the int8 form of it that is the fastest on a machine, which each machine makes for itself."""


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
    """Folder of the int8 form that is the fastest here, chosen once for these weights and libraries.

    The choice is made in a separate process, which keeps the memory and output of its libraries apart.
    """
    model = Path(asset(MODEL))
    content = b"".join((model / file).read_bytes() for file in ("model.safetensors", "tinyqa.json"))
    known = [__version__, *sorted(processor.features()), *_versions()]
    digest = hashlib.sha256(content + "|".join(known).encode()).hexdigest()[:12]
    kept = cache() / f"{INT8}-{digest}.json"
    try:
        found = _kept_or_chosen(kept)
    except OSError as error:
        raise InputError(
            f"{INT8} is made on first use, but cannot be kept in {kept.parent} ({error.strerror}); set "
            f"XDG_CACHE_HOME to a folder that can be written to, or use {MODEL}"
        ) from None
    if found["share_of_fp32"] < 1.0:
        _say_slower(found["share_of_fp32"])
    return Path(found["folder"])


def _kept_or_chosen(kept: Path) -> dict[str, Any]:
    found = _read(kept)
    if found is None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # several actors of one machine may get here at once
            found = _read(kept)
            if found is None:
                found = _chosen()
                temporary = kept.with_name(f"{kept.name}.new")
                temporary.write_text(json.dumps(found))
                temporary.replace(kept)
    return found


def _chosen() -> dict[str, Any]:
    """Make the int8 forms, time them, and return the fastest one and its share of the speed of fp32."""
    _log.warning("making the int8 forms of %s, once; this takes about a minute", MODEL)
    command = [sys.executable, "-m", "tinyqa_ray", "engines", "--model", MODEL, "--forms", "int8", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"{INT8}: could not be made; the reason stands above")
    every = json.loads(done.stdout.splitlines()[-1])["candidates"]
    forms = [each for each in every if each["name"].endswith("int8") and not each["refusal"]]
    if not forms:
        refusals = [each["refusal"] for each in every if each["name"].endswith("int8")]
        raise InputError(f"{INT8}: could not be made ({'; '.join(refusals)})")
    plain = next(each["windows_per_s"] for each in every if each["name"] == "torch-fp32")
    fastest = max(forms, key=lambda each: float(each["windows_per_s"]))
    return {"folder": fastest["folder"], "share_of_fp32": round(fastest["windows_per_s"] / plain, 2)}


def _read(kept: Path) -> dict[str, Any] | None:
    """The choice that was made before; None if there is none, or its folder is gone."""
    try:
        found: dict[str, Any] = json.loads(kept.read_text())
    except (OSError, ValueError):
        return None
    return found if Path(found["folder"]).is_dir() else None


def _versions() -> list[str]:
    """Versions of the libraries that run int8."""
    found = []
    for name in ("nncf", "onnxruntime", "openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return found


@functools.cache
def _say_slower(share: float) -> None:
    """Warn, once per process, that int8 does not pay on this processor."""
    _log.warning("%s runs at %.2f times the speed of %s on this processor", INT8, share, MODEL)
