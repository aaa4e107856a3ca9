"""How fast engines read real windows here: measured once, and kept in the cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from tinyqa_ray.core import bundled, forms, packages, processor, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.said import say_once
from tinyqa_ray.datasets.squad import read_squad
from tinyqa_ray.datasets.windows import Tokens, Windower
from tinyqa_ray.engines.devices import usable_lanes
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.load import fitting_window
from tinyqa_ray.models import families, pretrained

_WINDOWS = 32
_BATCHES = 2
"""Batches of every lane of every engine at least: with fewer, cores that have none decide the result."""
_ROUNDS = 4
_MOST_S = 15.0
"""After so many seconds no further round begins."""


def kept_or_timed(
    model: str, plain: str, engines: Mapping[str, tuple[Engine, Any]], *, whole: bool, again: bool
) -> dict[str, float]:
    """Windows per second of engines, as they were measured before or are now.

    Two processes that ask at once do not measure beside each other: the second one takes what the first
    found.

    Args:
        model: what the engines read for; see ``forms.key``.
        plain: name of the engine whose configuration tells how long windows may be.
        engines: each with its configuration, by name.
        whole: whether these are all that should be there; what is measured without some is not kept.
        again: measure even if it was measured before.
    """
    kept = Path(bundled.cache()) / "speeds" / f"{key(model, [*engines])}.json"
    with _held(kept):
        found = None if again else _read(kept)
        if found is None or found.keys() != engines.keys():
            found = timed(model, plain, engines)
            if whole:
                _keep(kept, found)
        return found


def kept_speeds(model: str, names: Sequence[str]) -> dict[str, float] | None:
    """Windows per second as they were measured before; None if they were not, with all of these engines."""
    found = _read(Path(bundled.cache()) / "speeds" / f"{key(model, names)}.json")
    return found if found is not None and found.keys() == {*names} else None


def key(model: str, names: Sequence[str]) -> str:
    """Identifies what speeds depend on: model, processor, cores, libraries, and which engines there are."""
    parts = (
        forms.key(model),
        *(processor.name(), *sorted(processor.features()), str(usable_lanes())),
        *packages.versions("torch", "openvino", "onnxruntime"),
        *sorted(names),
    )
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


def timed(model: str, plain: str, engines: Mapping[str, tuple[Engine, Any]]) -> dict[str, float]:
    """Windows per second of engines: the best of a few rounds, in which they take turns."""
    windows = some_windows(model, engines[plain][1], [engine for engine, _ in engines.values()])
    few = _first(windows, max(1, len(windows) // (2 * _BATCHES)))
    for engine, _ in engines.values():  # memory, threads and kernels are made ready
        engine.logits(few)
    began = time.perf_counter()
    best_s: dict[str, float] = {}
    for _ in range(_ROUNDS):
        for name, (engine, _) in engines.items():
            start = time.perf_counter()
            engine.logits(windows)
            taken = time.perf_counter() - start
            best_s[name] = min(best_s.get(name, taken), taken)
        if time.perf_counter() - began > _MOST_S:
            break
    return {name: round(len(windows) / seconds, 2) for name, seconds in best_s.items()}


def some_windows(model: str, config: Any, engines: Sequence[Engine]) -> Tokens:
    """Windows of the bundled excerpt of SQuAD, as often as every core of every engine needs to be at work."""
    paragraphs = read_squad(bundled.asset("squad2_dev.json"))
    pairs = [
        (question.question, paragraph.context) for paragraph in paragraphs for question in paragraph.questions
    ]
    window = fitting_window(families.max_window_tokens(config))
    real = _first(Windower(pretrained.load_tokenizer(model), window).windows(pairs[:_WINDOWS]), _WINDOWS)
    needed = max(_BATCHES * engine.lanes * engine.max_batch_tokens for engine in engines)
    times = max(1, -(-needed // int(real.lengths.sum())))
    return Tokens([*real.input_ids] * times, [*real.type_ids] * times)


def _first(windows: Tokens, count: int) -> Tokens:
    return Tokens(windows.input_ids[:count], windows.type_ids[:count])


@contextlib.contextmanager
def _held(kept: Path) -> Iterator[None]:
    """Hold what is kept against other processes, where the cache folder can be written to."""
    with contextlib.ExitStack() as held:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(f"{kept}.lock"))
        except OSError as error:
            _say_not_kept(error)
        yield


def _read(kept: Path) -> dict[str, float] | None:
    try:
        found = storage.read_json(str(kept)) if kept.is_file() else None
    except InputError:
        return None
    return found if isinstance(found, dict) else None


def _keep(kept: Path, speeds: dict[str, float]) -> None:
    try:
        storage.write_json(str(kept), speeds)
    except (InputError, StoreError, OSError) as error:
        _say_not_kept(error)


def _say_not_kept(error: Exception) -> None:
    say_once(f"how fast engines are cannot be kept, and will be measured again: {error}")
