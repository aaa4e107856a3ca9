"""The model that the package ships: its name, its folder, and its int8 form, which is made on first use."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinyqa_ray.core import packages, processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.said import say_once
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
    libraries = packages.versions("nncf", "onnx", "onnxruntime", "openvino", "torch")
    known = [__version__, processor.name(), *sorted(processor.features()), *libraries]
    digest = hashlib.sha256(content + "|".join(known).encode()).hexdigest()[:12]
    kept = cache() / f"{INT8}-{digest}.json"
    try:
        found = _kept_or_chosen(kept)
    except OSError as error:
        say_once(
            f"{INT8} cannot be kept in {kept.parent} ({error.strerror}), so every process makes it anew; set "
            "XDG_CACHE_HOME to a folder that can be written to"
        )
        found = _chosen_for_this_process()
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


@functools.cache
def _chosen_for_this_process() -> dict[str, Any]:
    """Like ``_chosen``, with a cache folder that is deleted when the process ends."""
    folder = tempfile.mkdtemp(prefix="tinyqa-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _chosen({"XDG_CACHE_HOME": folder})


def _chosen(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Make the int8 form, time it, and return its folder and its share of the speed of fp32.

    What other int8 forms were made before, ``tinyqa engines`` compares, too.
    """
    _log.warning("making %s, once; this takes about a minute", INT8)
    command = [sys.executable, "-m", "tinyqa_ray", "engines", "--model", MODEL]
    process = subprocess.Popen(
        [*command, "--forms", "shipped-int8", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    # Not inherited: a command that is at work has its stderr in a file.
    said: list[str] = []
    relay = threading.Thread(target=_relayed, args=(process.stderr, said))
    relay.start()
    try:
        printed = process.stdout.read()
        process.wait()
    except BaseException:  # also Ctrl-C: nothing is left running
        process.kill()
        process.wait()
        raise
    finally:
        relay.join()
    if process.returncode:
        reason = (said or ["no reason given"])[-1].removeprefix("tinyqa: ")
        raise InputError(f"{INT8}: could not be made ({reason})")
    every = json.loads(printed.splitlines()[-1])["candidates"]
    forms = [each for each in every if each["name"].endswith("int8") and not each["refusal"]]
    if not forms:
        refusals = [each["refusal"] for each in every if each["name"].endswith("int8")]
        why = "; ".join(refusals) or "what makes it is not installed; pip install 'tinyqa-ray[cpu]'"
        raise InputError(f"{INT8}: could not be made ({why})")
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


def _relayed(lines: Iterable[str], said: list[str]) -> None:
    """Log what another process says, and keep it."""
    for line in lines:
        said.append(line.strip())
        _log.warning("%s", line.strip())


@functools.cache
def _say_slower(share: float) -> None:
    """Warn, once per process, that int8 does not pay on this processor."""
    _log.warning("%s runs at %.2f times the speed of %s on this processor", INT8, share, MODEL)
