"""Chooses the fastest engine for a model on this processor; the candidates are timed once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tinyqa_ray.core import bundled, forms, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.said import say_once
from tinyqa_ray.engines import speeds
from tinyqa_ray.engines.devices import pick_device
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.engines.load import load_engine
from tinyqa_ray.models import hub

PLAIN = "torch-fp32"
"""The engine of a model that is not exported."""
NAMES = (PLAIN, *forms.NAMES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """An engine that can run a model here."""

    name: str
    """One of ``NAMES``."""
    folder: str
    """What ``load_engine`` loads it from: the model itself, or the folder of a form of it."""
    windows_per_s: float = 0.0
    f1_lost: float | None = 0.0
    """Points of F1, as its export measured it; None when it was not measured."""
    made_in_s: float | None = None
    """Seconds that making the form took on this machine; None for the model itself."""
    refusal: str = ""
    """Why it cannot run; empty when it can."""


def load(model: str, *, device: str = "auto", precision: str = "auto") -> tuple[Engine, Any]:
    """Load the engine of a model; ``auto`` chooses the fastest one on a CPU, see ``chosen``.

    Args:
        model: see ``Reader.from_pretrained``.
        device: likewise.
        precision: one of ``NAMES`` fixes the engine; others are those of ``load_engine``.

    Raises:
        InputError: as ``load_engine``, or the engine that was named cannot be made here.
    """
    if precision == "auto" and not is_exported(model) and _on_cpu(device):
        best = chosen(model)
        try:
            return load_engine(best.folder, device="cpu")
        except InputError as error:
            if best.name == PLAIN:
                raise
            say_once(f"{best.name} of {model} cannot be read, so torch runs it: {error}")
            return load_engine(model, device="cpu")
    if precision in NAMES:
        _check_named(model, device, precision)
        return load_engine(folder_of(model, precision), device="cpu")
    return load_engine(model, device=device, precision=precision)


def _check_named(model: str, device: str, name: str) -> None:
    """Refuse an engine of CPUs where something else is asked for as well."""
    if device not in ("auto", "cpu"):
        raise InputError(
            f"precision is {name!r}, an engine of CPUs, but device is {device!r}; use device 'cpu', or "
            "precision 'fp32', 'bf16' or 'fp16'"
        )
    if is_exported(model):
        raise InputError(
            f"{model}: is an export, which runs on one engine, but precision is {name!r}; leave it to "
            "'auto', or give the model that the export was made of"
        )


def folder_of(model: str, name: str, *, portable: bool = False) -> str:
    """What ``load_engine`` loads an engine from: the model, or its form, which is made if it is absent.

    For ``portable`` see ``forms.made``.
    """
    return model if name == PLAIN else forms.made(hub.at_commit(model), name, portable=portable)


def chosen(model: str) -> Candidate:
    """The fastest engine for a model on this CPU that the loss of F1 allows.

    The candidates are torch in fp32 and the forms that were made before, by ``tinyqa engines``; for the
    shipped model, ``forms.of_shipped`` are made here. They are timed once for a model, a processor and
    versions of libraries, on as many cores as ``usable_lanes``, and the result is kept in the cache folder.
    ``TINYQA_ENGINE`` fixes the choice.
    """
    fixed = os.environ.get(forms.FIXED)
    if fixed:
        if fixed not in NAMES:
            raise InputError(f"{forms.FIXED} is {fixed!r}; it must be one of {', '.join(NAMES)}")
        return Candidate(name=fixed, folder=folder_of(model, fixed))
    return best(candidates(model, make=forms.of_shipped() if model == bundled.MODEL else ()))


def best(found: Sequence[Candidate]) -> Candidate:
    """The fastest candidate whose loss of F1 was measured; torch can always run.

    How much a form may lose was decided when it was made: an export that loses more than its
    ``max_f1_drop`` is not written.
    """
    allowed = [each for each in found if not each.refusal and each.f1_lost is not None]
    return max(allowed, key=lambda each: each.windows_per_s)


def candidates(
    model: str, *, make: Sequence[str] = (), calibration: str | None = None, again: bool = False
) -> list[Candidate]:
    """The engines that can run a model here, with their speed.

    Args:
        model: folder, URL or hub id of a model that is not exported.
        make: forms to make if they are absent; others count if they are there.
        calibration: SQuAD 2.0 data for int8 forms; not needed for the shipped model.
        again: time them even if they were timed before.

    Raises:
        InputError: no such model.
    """
    known = hub.at_commit(model)
    found = [Candidate(name=PLAIN, folder=model)]
    for name in forms.NAMES:
        form = _form(known, name, calibration, make=name in make, again=again)
        found += [] if form is None else [form]
    able = [each for each in found if not each.refusal]
    if len(able) == 1 and not again:
        return found  # nothing to compare
    kept = None if again else speeds.kept_speeds(known, [each.name for each in able])
    if kept is None:
        loaded = {each.name: _loaded(model, each) for each in able}
        engines = {name: each for name, each in loaded.items() if each is not None}
        whole = len(engines) == len(able)
        kept = speeds.kept_or_timed(known, PLAIN, engines, whole=whole, again=again)
    return [_with_speed(each, kept) for each in found]


def _with_speed(candidate: Candidate, found: Mapping[str, float]) -> Candidate:
    if candidate.refusal:
        return candidate
    if candidate.name not in found:
        return replace(candidate, refusal=f"{candidate.folder}: cannot be read; delete the folder")
    return replace(candidate, windows_per_s=found[candidate.name])


def _form(model: str, name: str, calibration: str | None, *, make: bool, again: bool) -> Candidate | None:
    """A form as a candidate; None where it is not there and not to be made. A refusal is said once."""
    try:
        folder = _made(model, name, calibration, again) if make else forms.at_hand(model, name)
        if folder is None or not forms.runs(name):
            return None
        return Candidate(name=name, folder=folder, f1_lost=_f1_lost(folder), made_in_s=forms.took_s(folder))
    except InputError as error:
        say_once(str(error))
        return Candidate(name=name, folder="", refusal=str(error))


def _made(model: str, name: str, calibration: str | None, again: bool) -> str:
    if not forms.runs(name):
        raise InputError(f"{name}: its library is not installed; pip install 'tinyqa-ray[cpu]'")
    # Only int8 depends on the data; another precision is checked on it, but not made anew for it.
    return forms.made(model, name, calibration if name.endswith("int8") else None, again=again)


def _on_cpu(device: str) -> bool:
    return device != "tensorrt" and pick_device(device).type == "cpu"


def _f1_lost(folder: str) -> float | None:
    """Points of F1 that a form lost, with or without abstaining; None where that was not measured."""
    file = storage.join(folder, "_SUCCESS.json")
    try:
        report = storage.read_json(file)["report"]
        if report["model"] is None:
            return 0.0 if report["precision"] == "fp32" else None
        names = [name for name in ("f1", "forced_f1") if report["model"][name] is not None]
        return float(max(report["model"][name] - report["export"][name] for name in names))
    except (KeyError, TypeError):
        raise InputError(
            f"{file}: is not the report of an export of this version; delete the folder"
        ) from None


def _loaded(model: str, candidate: Candidate) -> tuple[Engine, Any] | None:
    """The engine of a candidate; None, with a word, for a form that is cut off or of another processor."""
    try:
        return load_engine(candidate.folder, device="cpu")
    except InputError as error:
        if candidate.name == PLAIN:
            raise
        say_once(f"{candidate.name} of {model} is left out: {error}")
        return None
