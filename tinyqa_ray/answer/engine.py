"""The engine of a run: chosen once by the driver, so that all actors, and a continued run, use the same."""

from __future__ import annotations

from dataclasses import dataclass

from tinyqa_ray.answer.report import WORK
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.engines import choose
from tinyqa_ray.engines.exported import is_exported

_KEPT = "engine.json"
_FORM = "engine"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunEngine:
    """What actors load: arguments of ``Reader.from_pretrained``."""

    model: str
    precision: str | None


def engine_of(config: AnswerConfig, stage: stage_folder.Stage, *, begun: bool) -> RunEngine:
    """The engine of a run; the first call chooses it and writes it down in the stage's folder.

    A form of the model is copied there as well: actors on other machines read the very same weights, which
    every processor computes rightly. A run
    that an earlier version of the package began is continued with that version's engine, torch.

    Args:
        config: of the stage.
        stage: its folder.
        begun: whether units of the run may have been done already.

    Raises:
        InputError: the engine that the config names cannot be made here.
    """
    model = stage_folder.for_workers(config, "model").model
    if config.precision not in (None, "auto", *choose.NAMES):
        return RunEngine(model=model, precision=config.precision)
    if config.num_gpus or is_exported(config.model):
        return RunEngine(model=model, precision=None)
    kept = stage.path(WORK, _KEPT)
    if storage.kind(kept) == "absent":
        name = choose.PLAIN
        if config.precision in choose.NAMES:
            name = config.precision
        elif not begun:
            name = choose.chosen(config.model).name
        if name != choose.PLAIN:
            _copy(_portable(config.model, name), stage.path(WORK, f"{_FORM}-{name}"))
        storage.write_json(kept, {"engine": name})
    name = storage.read_json(kept)["engine"]
    if name == choose.PLAIN:
        return RunEngine(model=model, precision=None)
    return RunEngine(model=stage.path(WORK, f"{_FORM}-{name}"), precision=None)


def _portable(model: str, name: str) -> str:
    """The form that is copied: of the shipped model, the one whose int8 every processor computes rightly.

    That of another model needs its calibration data, so the one at hand is taken; a processor that would
    compute wrongly with it refuses to load it.
    """
    return choose.folder_of(model, name, portable=model == bundled.MODEL)


def _copy(folder: str, target: str) -> None:
    for file in storage.list_files(folder, recursive=True):
        storage.write_atomic(storage.join(target, file.removeprefix(f"{folder}/")), storage.chunks(file))
