"""Exported forms of a model, made once a machine into the cache folder: in another process, under a lock."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinyqa_ray.core import bundled, contents, packages, processor, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.said import say_once
from tinyqa_ray.core.version import __version__

NAMES = ("openvino-int8", "onnx-int8", "openvino-bf16", "openvino-fp32", "onnx-fp32")
"""Forms of a model: what it runs on, and its precision."""

FIXED = "TINYQA_ENGINE"
"""Environment variable that fixes the engine that ``auto`` chooses: ``torch-fp32``, or one of ``NAMES``."""

_log = logging.getLogger(__name__)
_RUN_BY = {"openvino": ("openvino",), "onnx": ("onnxruntime",)}
"""Modules that run a form, by the first part of its name."""
_MADE_BY = {"openvino": ("openvino", "nncf"), "onnx": ("onnxruntime", "onnx")}
"""Modules that make one."""
_SAID_EVERY_S = 10.0
_SETTINGS = "tinyqa.json"
_MAKING = "making"
"""What comes after the dot in the name of a folder that a process makes a form in; its number follows."""
_MADE = "made.json"
"""File in a form's folder: what making it took, and what it was calibrated on."""
_MISTAKE = 2
"""Exit code of a refusal that another trial would repeat; a killed process ends with another one."""
_SCHEME = "3"
"""Changes with how forms are made, so that forms of before are made anew."""
_SHIPPED = ("--calibration-questions", "100", "--check-questions", "400", "--max-f1-drop", "2")
"""As many as a minute allows. On so few, a form that loses half a point may seem to lose two; what is lost
was measured on more (``benchmarks/int8_f1.py``)."""


def key(model: str) -> str:
    """Hex digits that identify a model's weights and settings, for this version of the package.

    Args:
        model: a folder or URL, or a hub id, which is identified by its name: give it with its commit.
    """
    source = bundled.source(model)
    found = [contents.identity(source), __version__, _SCHEME]
    settings = storage.join(source, _SETTINGS)
    if storage.kind(settings) == "file":
        found.append(hashlib.sha256(storage.read_bytes(settings)).hexdigest())
    return hashlib.sha256("|".join(found).encode()).hexdigest()[:16]


def runs(name: str) -> bool:
    """Whether the library that runs a form is installed."""
    return packages.installed(*_RUN_BY[name.partition("-")[0]])


def of_shipped() -> tuple[str, ...]:
    """The forms that each machine makes of the shipped model: the fp32 and the int8 that are faster there.

    Making one takes its time, so others are compared only where ``tinyqa engines`` made them. With VNNI
    OpenVINO's are the faster ones; without it its int8 is slower than fp32, and ONNX Runtime's are faster
    (``benchmarks/engines.py``). Where that library is not installed, the other one is taken; where neither
    is, nothing is made.
    """
    faster = ("openvino", "onnx") if "vnni" in processor.features() else ("onnx", "openvino")
    for library in faster:
        if packages.installed(*_MADE_BY[library]):
            return (f"{library}-int8", f"{library}-fp32")
    return ()


def prepare(model: str, precision: str) -> None:
    """Make the forms that a precision needs, where people see that it is going on.

    Args:
        model: see ``made``.
        precision: name of a form, or ``auto``; others need none.

    Raises:
        InputError: the form that is named cannot be made.
    """
    name = os.environ.get(FIXED, precision) if precision == "auto" else precision
    if name in NAMES:
        made(model, name)
    elif name == "auto" and model == bundled.MODEL:
        for each in of_shipped():
            _made_or_said(model, each)


def _made_or_said(model: str, name: str) -> None:
    try:
        made(model, name)
    except InputError as error:
        say_once(str(error))


def at_hand(model: str, name: str) -> str | None:
    """Folder of a form that was made before; None if there is none."""
    folder = _folder(model, name)
    return str(folder) if folder.is_dir() else None


def took_s(folder: str) -> float | None:
    """Seconds that making a form took; None where it does not say."""
    found = _about(folder).get("seconds")
    return None if found is None else float(found)


def _about(folder: str) -> dict[str, Any]:
    """What a form's folder says of its making; nothing where it does not say."""
    file = storage.join(folder, _MADE)
    found = storage.read_json(file) if storage.kind(file) == "file" else None
    return found if isinstance(found, dict) else {}


def made(
    model: str, name: str, calibration: str | None = None, *, portable: bool = False, again: bool = False
) -> str:
    """Folder of a form, which is made if it is absent; what is going on is logged.

    The process that makes it may be killed: what it left is deleted when the form is asked for again. If two
    processes ask at once, one of them waits for the other. A process that was killed may have left the
    exporting one running; that writes into a folder of its own, which nobody takes for a form.

    Args:
        model: folder, URL or hub id (with its commit) of a model.
        name: one of ``NAMES``.
        calibration: SQuAD 2.0 data that int8 needs; not needed for the shipped model. A form that was
            calibrated on other data is made anew.
        portable: whether other processors have to read an int8 form, too: its weights then have the 7 bits
            that every one computes rightly.
        again: try again what was refused before.

    Raises:
        InputError: it cannot be made here; with the same libraries the reason is given again without another
            trial, unless the exporting process was killed. Or the cache folder cannot be written to.
    """
    assert name in NAMES, name
    folder = _folder(model, name, portable)
    calibrated_on = None if calibration is None else contents.identity(calibration)
    if _is_there(folder, calibrated_on):
        return str(folder)
    refused = folder.with_name(f"{folder.name}-{_libraries()}.refused")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # several actors of one machine may get here at once
            if not _is_there(folder, calibrated_on):
                if refused.is_file() and not again:
                    raise InputError(f"{refused.read_text()}; tinyqa engines --model {model} tries again")
                try:
                    _make(model, name, calibration, calibrated_on, folder)
                except _RefusedError as error:
                    refused.write_text(str(error))
                    raise
                refused.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: forms of models cannot be kept there ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written to"
        ) from None
    return str(folder)


class _RefusedError(InputError):
    """The export's own refusal."""


def _folder(model: str, name: str, portable: bool = False) -> Path:
    bits = f"-{_weight_bits(portable)}" if name.endswith("int8") else ""
    return bundled.cache() / "forms" / f"{key(model)}-{name}{bits}"


def _weight_bits(portable: bool) -> int:
    """Of the weights of int8 forms: with 8 they lose less, but not every processor computes rightly then."""
    return 7 if portable or processor.saturates_int8() else 8


def _libraries() -> str:
    """Hex digits that change when a library is installed or updated that a refusal may be due to."""
    known = packages.versions("torch", "transformers", *_MADE_BY["openvino"], *_MADE_BY["onnx"])
    return hashlib.sha256("|".join(known).encode()).hexdigest()[:8]


def _is_there(folder: Path, calibrated_on: str | None) -> bool:
    """Whether a form was made, and on the data asked for, if any."""
    if not folder.is_dir() or calibrated_on is None:
        return folder.is_dir()
    return bool(_about(str(folder)).get("calibration") == calibrated_on)


def _make(model: str, name: str, calibration: str | None, calibrated_on: str | None, folder: Path) -> None:
    """Export in a separate process, which keeps its memory and output apart; then move the result here."""
    runs_on, precision = name.split("-")
    bits = folder.name.rpartition("-")[2]
    for left in folder.parent.glob(f"{folder.name}.{_MAKING}*"):  # by processes that were killed
        shutil.rmtree(left, ignore_errors=True)
    making = folder.with_name(f"{folder.name}.{_MAKING}-{os.getpid()}")
    command = [sys.executable, "-m", "tinyqa_ray", "export", "--output", str(making)]
    command += ["--model", model, "--format", runs_on, "--precision", precision]
    if precision == "int8":
        command += ["--weight-bits", bits]
    if precision == "int8" and model == bundled.MODEL:
        command += _SHIPPED
    elif calibration is not None:
        command += ["--calibration", calibration]
    _log.warning("making %s of %s, once, into %s", name, model, folder)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    began = time.monotonic()
    try:
        while True:
            try:
                _, said = process.communicate(timeout=_SAID_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                _log.warning("still making %s of %s (%.0f s)", name, model, time.monotonic() - began)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        shutil.rmtree(making, ignore_errors=True)
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        why = f"{name} of {model} could not be made ({reason.removeprefix('tinyqa: ')})"
        raise _RefusedError(why) if process.returncode == _MISTAKE else InputError(why)
    took = {"seconds": round(time.monotonic() - began, 1), "calibration": calibrated_on}
    (making / _MADE).write_text(json.dumps(took))
    if folder.is_dir():  # calibrated on other data
        folder.rename(f"{folder}.{_MAKING}-before")
        shutil.rmtree(f"{folder}.{_MAKING}-before", ignore_errors=True)
    making.rename(folder)
    _log.warning("made %s of %s in %.0f s", name, model, time.monotonic() - began)
