"""Names and shapes of a model's weights, read from the headers of its safetensors files alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import families, pretrained

Shapes = dict[str, tuple[int, ...]]
"""Shape of each tensor, by name."""


def check_qa_model(name: str, *, new_head: bool = False) -> None:
    """Refuse what ``pretrained.load_qa_model`` would refuse, without loading a model that is whole.

    Args:
        name: local folder, URL of a folder, or hub id.
        new_head: accept an encoder without a question-answering head.

    Raises:
        InputError: see ``pretrained.load_qa_model``.
    """
    if not _is_whole(name, new_head):
        # Loading reports what is wrong, or accepts a model that the headers alone do not show to be whole.
        pretrained.load_qa_model(name, new_head=new_head)


def have_one_shape(name: str, others: Sequence[str]) -> bool:
    """Whether models have tensors of the same names and shapes; False if a header cannot be read."""
    shapes = [_shapes_of(each) for each in (name, *others)]
    return None not in shapes and all(each == shapes[0] for each in shapes)


def count_parameters(name: str) -> int:
    """Number of parameters in the weights of a model's folder."""
    shapes = _shapes_of(name)
    assert shapes is not None, f"{name} was written by this process"
    return sum(map(math.prod, shapes.values()))


def _is_whole(name: str, new_head: bool) -> bool:
    """Whether the headers list every tensor of the model in its shape; False if they cannot be read."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    found = _shapes_of(name)
    if found is None:
        return False
    config = pretrained.load_config(name)
    families.refuse_unreadable(name, config)
    try:
        with torch.device("meta"):  # tensors have shapes, but take no memory
            model = AutoModelForQuestionAnswering.from_config(config)
    except (ValueError, KeyError, RuntimeError):
        return False
    prefix = f"{model.base_model_prefix}."
    known = {key.removeprefix(prefix): shape for key, shape in found.items()}
    lacking = [
        key
        for key, tensor in model.state_dict().items()
        if known.get(key.removeprefix(prefix)) != tuple(tensor.shape)
    ]
    return not lacking or (new_head and not any(key.startswith(prefix) for key in lacking))


def _shapes_of(name: str) -> Shapes | None:
    """The shapes in a model's files; None if there is no such model, or its files cannot be read."""
    try:
        with pretrained.readable(name) as folder:
            files = sorted(Path(folder).glob("*.safetensors"))
            return dict(pair for file in files for pair in _header(file)) if files else None
    except (InputError, OSError, SafetensorError):
        return None


def _header(file: Path) -> list[tuple[str, tuple[int, ...]]]:
    with safe_open(file, "np") as tensors:
        return [(key, tuple(tensors.get_slice(key).get_shape())) for key in tensors.keys()]  # noqa: SIM118
