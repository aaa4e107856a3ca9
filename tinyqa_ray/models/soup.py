"""The mean of the weights of several models."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained


def averaged(model: PreTrainedModel, name: str, others: Sequence[str]) -> PreTrainedModel:
    """Give a model the mean of its own weights and those of others: a uniform soup (arXiv 2203.05482).

    Models that were trained apart average well only if they started from the same pretrained model.

    Args:
        model: changed in place, and returned.
        name: of the model, for messages.
        others: folders or hub ids of models of its shape.

    Raises:
        InputError: a model cannot be read, or its tensors have other names or shapes.
    """
    weights = {key: tensor.double() for key, tensor in model.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    for other in others:
        its = pretrained.load_qa_model(other).state_dict()
        for key in shapes.keys() | its.keys():
            mine, found = shapes.get(key), its[key].shape if key in its else None
            if mine != found:
                raise InputError(
                    f"{other}: has {key} of shape {_shape(found)}, and {name} of {_shape(mine)}; "
                    "only models of one shape can be averaged"
                )
        for key, tensor in its.items():
            weights[key] += tensor
    if others:
        model.load_state_dict({key: total / (1 + len(others)) for key, total in weights.items()})
    return model


def _shape(shape: Sequence[int] | None) -> str:
    return "none" if shape is None else "x".join(map(str, shape))
