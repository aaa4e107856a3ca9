"""Chooses the fastest engine for a model on this processor; the candidates are timed once."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import torch

from tinyqa_ray.core import bundled, forms, processor, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.said import say_once
from tinyqa_ray.datasets.squad import read_squad
from tinyqa_ray.datasets.windows import Tokens, Windower
from tinyqa_ray.engines.devices import pick_device
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import is_exported
from tinyqa_ray.engines.load import fitting_window, load_engine
from tinyqa_ray.models import families, pretrained

PLAIN = "torch-fp32"
"""The engine of a model that is not exported."""
NAMES = (PLAIN, *forms.NAMES)
FIXED = "TINYQA_ENGINE"
"""Environment variable that fixes what ``auto`` chooses to one of ``NAMES``."""
_WINDOWS = 32
_ROUNDS = 4
_FEW_S = 1.0
_PACKAGES = ("torch", "openvino", "onnxruntime")


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
        return load_engine(folder_of(model, precision), device="cpu")
    return load_engine(model, device=device, precision=precision)


def folder_of(model: str, name: str) -> str:
    """What ``load_engine`` loads an engine from: the model, or its form, which is made if it is absent."""
    return model if name == PLAIN else forms.made(model, name)


def chosen(model: str) -> Candidate:
    """The fastest engine for a model on this CPU that the loss of F1 allows.

    The candidates are torch in fp32 and the forms that were made before, by ``tinyqa engines``; for the
    shipped model, ``_shipped_forms`` are made here. They are timed once for a model, a processor and versions
    of libraries, with as many threads as torch has, and the result is kept in the cache folder.
    ``TINYQA_ENGINE`` fixes the choice.
    """
    fixed = os.environ.get(FIXED)
    if fixed:
        if fixed not in NAMES:
            raise InputError(f"{FIXED} is {fixed!r}; it must be one of {', '.join(NAMES)}")
        return Candidate(name=fixed, folder=folder_of(model, fixed))
    return best(candidates(model, make=_shipped_forms() if model == bundled.MODEL else ()))


def _shipped_forms() -> tuple[str, ...]:
    """What is made of the shipped model: fp32, which loses nothing, and the int8 that is faster here.

    Each takes its time to make, so others are timed only where ``tinyqa engines`` made them. With VNNI
    OpenVINO's are the faster ones; without it its int8 is slower than fp32, and ONNX Runtime's are faster
    (``benchmarks/engines.py``).
    """
    library = "openvino" if "vnni" in processor.features() else "onnx"
    return (f"{library}-int8", f"{library}-fp32")


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
    found = [Candidate(name=PLAIN, folder=model)]
    for name in forms.NAMES:
        form = _form(model, name, calibration, make=name in make)
        found += [] if form is None else [form]
    able = [each for each in found if not each.refusal]
    if len(able) == 1 and not again:
        return found  # nothing to compare
    kept = storage.join(str(bundled.cache()), "speeds", f"{_key(model, able)}.json")
    speeds = None if again else _read(kept)
    if speeds is None:
        speeds = _timed(model, able)
        try:
            storage.write_json(kept, speeds)
        except (InputError, OSError) as error:
            say_once(f"how fast engines are cannot be kept, and will be measured again: {error}")
    return [_with_speed(each, speeds) for each in found]


def _with_speed(candidate: Candidate, speeds: Mapping[str, float]) -> Candidate:
    if candidate.refusal:
        return candidate
    if candidate.name not in speeds:
        return replace(candidate, refusal=f"{candidate.folder}: cannot be read; delete the folder")
    return replace(candidate, windows_per_s=speeds[candidate.name])


def _form(model: str, name: str, calibration: str | None, *, make: bool) -> Candidate | None:
    """A form as a candidate; None where it is not there and not to be made. A refusal is said once."""
    try:
        folder = _made(model, name, calibration) if make else forms.at_hand(model, name)
        if folder is None or not _installed(name):
            return None
        return Candidate(name=name, folder=folder, f1_lost=_f1_lost(folder), made_in_s=forms.took_s(folder))
    except InputError as error:
        say_once(str(error))
        return Candidate(name=name, folder="", refusal=str(error))


def _made(model: str, name: str, calibration: str | None) -> str:
    if not _installed(name):
        raise InputError(f"{name}: its library is not installed; pip install 'tinyqa-ray[cpu]'")
    return forms.made(model, name, calibration)


def _installed(name: str) -> bool:
    library = "openvino" if name.startswith("openvino") else "onnxruntime"
    return importlib.util.find_spec(library) is not None


def _on_cpu(device: str) -> bool:
    return device != "tensorrt" and pick_device(device).type == "cpu"


def _key(model: str, able: Sequence[Candidate]) -> str:
    """Identifies what the speeds depend on: model, processor, threads, libraries, candidates."""
    versions = [metadata.version(name) for name in _PACKAGES if importlib.util.find_spec(name)]
    lines = processor.CPU_INFO.read_text().splitlines() if processor.CPU_INFO.exists() else []
    kind = next((line for line in lines if line.startswith("model name")), "")
    parts = (
        forms.key(model),
        *(kind, *sorted(processor.features()), str(torch.get_num_threads())),
        *versions,
        *(each.name for each in able),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def _read(file: str) -> dict[str, float] | None:
    try:
        found = storage.read_json(file) if storage.kind(file) == "file" else None
    except InputError:
        return None
    return found if isinstance(found, dict) else None


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


def _timed(model: str, able: Sequence[Candidate]) -> dict[str, float]:
    """Windows per second of each candidate: the best of a few rounds, in which they take turns.

    A form that cannot be read (cut off, or of another processor) is left out, with a word.
    """
    loaded = {each.name: _loaded(model, each) for each in able}
    engines = {name: each for name, each in loaded.items() if each is not None}
    windows = _some_windows(model, engines[PLAIN][1])
    best_s: dict[str, float] = {}
    for number in range(_ROUNDS + 1):
        for name, (engine, _) in engines.items():
            began = time.perf_counter()
            engine.logits(windows)
            taken = time.perf_counter() - began
            if number:  # the first round is a warm-up
                best_s[name] = min(best_s.get(name, taken), taken)
            elif name == PLAIN and taken > _FEW_S:
                windows = _first(windows, max(4, int(len(windows) * _FEW_S / taken)))
    return {name: round(len(windows) / seconds, 2) for name, seconds in best_s.items()}


def _loaded(model: str, candidate: Candidate) -> tuple[Engine, Any] | None:
    try:
        return load_engine(candidate.folder, device="cpu")
    except InputError as error:
        if candidate.name == PLAIN:
            raise
        say_once(f"{candidate.name} of {model} is left out: {error}")
        return None


def _first(windows: Tokens, count: int) -> Tokens:
    return Tokens(windows.input_ids[:count], windows.type_ids[:count])


def _some_windows(model: str, config: Any) -> Tokens:
    """Real windows, of the bundled excerpt of SQuAD."""
    paragraphs = read_squad(bundled.asset("squad2_dev.json"))
    pairs = [
        (question.question, paragraph.context) for paragraph in paragraphs for question in paragraph.questions
    ]
    window = fitting_window(families.max_window_tokens(config))
    return _first(Windower(pretrained.load_tokenizer(model), window).windows(pairs[:_WINDOWS]), _WINDOWS)
