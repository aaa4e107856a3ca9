"""Checkpoints in a run's storage: which are whole, which is the newest, and repair of Ray's list of them."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

_SEAL = "sealed-{rank}.json"
_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Where Ray Train lists the checkpoints of a run; it rewrites the file in place."""


def seal(folder: Path, rank: int, world_size: int, metrics: dict[str, Any]) -> None:
    """Write a list of a rank's files and sizes beside them; it shows whether a kill cut the upload short."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }
    document = {"step": metrics["step"], "steps": metrics["steps"], "world_size": world_size, "files": sizes}
    (folder / _SEAL.format(rank=rank)).write_text(json.dumps(document))


def sealed(folder: Path) -> dict[str, Any]:
    """Read what rank 0 sealed: ``step``, ``steps`` and ``world_size``."""
    document: dict[str, Any] = json.loads((folder / _SEAL.format(rank=0)).read_text())
    return document


def whole_checkpoints(path: str) -> dict[str, int]:
    """Folders of the whole checkpoints under ``path`` with their steps, in the order of steps.

    Ray's own list may lack some: a run may be killed after an upload and before Ray lists it.
    """
    filesystem, inner = storage.resolve(path)
    found = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    folders = [storage.join(path, info.base_name) for info in found if info.type == pafs.FileType.Directory]
    steps = {folder: step for folder in folders if (step := _whole(folder)) is not None}
    return {folder: steps[folder] for folder in sorted(steps, key=lambda folder: (steps[folder], folder))}


def newest_checkpoint(path: str) -> str | None:
    """Folder of the whole checkpoint of the highest step under ``path``; None when there is none."""
    return next(reversed(whole_checkpoints(path)), None)


def as_checkpoint(folder: str) -> Any:
    """A checkpoint's folder as a ``ray.train.Checkpoint``."""
    from ray.train import Checkpoint

    filesystem, inner = storage.resolve(folder)
    return Checkpoint(path=inner, filesystem=filesystem)


def local_checkpoint(folder: str) -> AbstractContextManager[Path]:
    """A context with a local copy of a checkpoint, or the folder itself where it is local."""
    return _AsPath(as_checkpoint(folder).as_directory())


def mend_list(path: str) -> None:
    """Delete Ray's list of a run's checkpoints if Ray would refuse it.

    A kill may leave it half written, and processes that outlive their driver by seconds may delete
    checkpoints that a later driver lists. Without the list Ray starts a new one; ``whole_checkpoints`` does
    not need it.
    """
    snapshot = storage.join(path, _SNAPSHOT)
    if storage.kind(snapshot) != "file":
        return
    try:
        listed = json.loads(storage.read_bytes(snapshot)).get("checkpoint_results", [])
    except ValueError:
        storage.delete_file(snapshot)
        return
    if any(storage.kind(storage.join(path, each["checkpoint_dir_name"])) != "folder" for each in listed):
        storage.delete_file(snapshot)


def _whole(folder: str) -> int | None:
    """The step of a checkpoint; None unless every rank sealed it and all files have their sealed sizes."""
    filesystem, inner = storage.resolve(folder)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=True)
    sizes = {info.path[len(inner) :].lstrip("/"): info.size for info in filesystem.get_file_info(selector)}
    rank, world_size, step = 0, 1, None
    while rank < world_size:
        name = _SEAL.format(rank=rank)
        try:
            document = json.loads(storage.read_bytes(storage.join(folder, name)))
        except (ValueError, InputError):
            return None
        if any(sizes.get(file) != size for file, size in document["files"].items()):
            return None
        world_size, step = document["world_size"], document["step"]
        rank += 1
    return step


class _AsPath(AbstractContextManager[Path]):
    def __init__(self, folder: AbstractContextManager[Any]) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        return Path(self._folder.__enter__())

    def __exit__(self, *error: Any) -> None:
        self._folder.__exit__(*error)
