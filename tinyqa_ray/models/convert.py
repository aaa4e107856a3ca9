"""Pickled weights (pytorch_model.bin) → safetensors, without running what a pickle may hold."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save

from tinyqa_ray.core import bundled, faults, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub, pretrained

_WEIGHTS = "pytorch_model*.bin"
_WANTED = (_WEIGHTS, "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*")
_NEEDLESS = "{}: has safetensors already; use it as it is"


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What was written."""

    output: str
    tensors: int
    bytes: int
    """Size of the weights."""


def convert(model: str, output: str) -> Converted:
    """Write ``model`` with its weights as ``model.safetensors`` into ``output``, beside its other files.

    Args:
        model: local folder, URL of a folder, or hub id, with ``pytorch_model.bin`` or its parts.
        output: a folder that is empty or not there yet.

    Raises:
        InputError: there is no such model, it has safetensors already, a pickle holds more than tensors or is
            incomplete, or the output is not empty.
    """
    if storage.kind(output) == "file" or (storage.kind(output) == "folder" and storage.names_in(output)):
        raise InputError(f"{output}: holds something already; give --output a folder that is not there yet")
    with _local(model) as folder:
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"{model}: has no config.json; give a folder that save_pretrained wrote")
        if list(Path(folder).glob("*.safetensors")):
            raise InputError(_NEEDLESS.format(model))
        pickles = sorted(Path(folder).glob(_WEIGHTS))
        if not pickles:
            raise InputError(f"{model}: has no pytorch_model.bin; there is nothing to convert")
        tensors: dict[str, torch.Tensor] = {}
        for path in pickles:
            tensors |= _loaded(model, path)
        data = save(tensors, metadata={"format": "pt"})
        for file in pretrained.files_beside_weights(folder):
            storage.write_atomic(storage.join(output, file.name), file.read_bytes())
        # Last: if this is interrupted, the folder has no weights and is refused.
        storage.write_atomic(storage.join(output, "model.safetensors"), data)
    return Converted(output=output, tensors=len(tensors), bytes=len(data))


def _loaded(model: str, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle by name; no two share memory, as safetensors requires."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{model}: {path.name} is broken, or holds more than tensors, which could run code and is not "
            "loaded; ask its makers for safetensors"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{model}: {path.name} cannot be read ({hub.reason(error)}); fetch it again"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(each, torch.Tensor) for each in found.values()):
        raise InputError(f"{model}: {path.name} does not hold weights by name, as save_pretrained wrote them")
    return {str(name): tensor.detach().clone().contiguous() for name, tensor in found.items()}


@contextlib.contextmanager
def _local(model: str) -> Iterator[str]:
    """A folder with the model's files; those of a hub id are fetched into the hub's cache."""
    if not hub.is_id(bundled.located(model)):
        with pretrained.readable(model) as folder:
            yield folder
        return
    from huggingface_hub import list_repo_files, snapshot_download

    name, revision = hub.parted(model)
    try:
        files = faults.patiently(model, lambda: list_repo_files(name, revision=revision))
        if any(file.endswith(".safetensors") for file in files):
            raise InputError(_NEEDLESS.format(model))
        fetched = faults.patiently(
            model, lambda: snapshot_download(name, revision=revision, allow_patterns=list(_WANTED))
        )
    except InputError:
        raise
    except Exception as error:
        # The client's transport has errors of its own, which differ between its versions.
        mistake = f"{model}: could not be fetched ({hub.reason(error)})"
        raise faults.refused(model, error, mistake) from None
    yield fetched
