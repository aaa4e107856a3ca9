"""Linear layers computed by oneDNN, for processors on which MKL leaves half of the speed unused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from tinyqa_ray.core import processor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPECTED_TOKENS = 1024
"""Of a forward; weights are laid out for it, and right for any other number."""
_CLOSE = 1e-4
"""Largest difference of results, as a share of the largest one."""


class PackedLinear(torch.nn.Module):
    """``torch.nn.Linear`` for inference in fp32 on a CPU, computed by oneDNN instead of MKL.

    The operators are those that ``torch.compile`` uses for frozen models. They have no public name; the
    public way, ``Tensor.to_mkldnn``, copies all values to and fro, and takes 1.2 times as long.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Copy the weights of ``linear``, ``(out, in)``, into oneDNN's own order."""
        super().__init__()
        self.out_features, self.bias = linear.out_features, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _EXPECTED_TOKENS)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values of ``(..., in)`` times the weights, ``(..., out)``."""
        made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            values, self.packed, self.bias, "none", [], ""
        )
        return made


def pack(model: PreTrainedModel, forward: Callable[[], torch.Tensor]) -> bool:
    """Replace the linear layers of a model in place, where that is faster and the results stay the same.

    It is faster in fp32 on a CPU that MKL leaves half unused. A model that looks into its layers' weights, or
    a torch without these operators, stays as it is.

    Args:
        model: in eval mode, and used for nothing but inference from now on.
        forward: runs the model on some made-up input.

    Returns:
        whether the layers were replaced.
    """
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    fp32_on_cpu = model.device.type == "cpu" and model.dtype == torch.float32
    if not (fp32_on_cpu and has_mkl and processor.is_slowed_by_mkl()):
        return False
    layers = list(_linear_layers(model))
    with torch.inference_mode():
        wanted = forward()
        try:
            for parent, name, linear in layers:
                setattr(parent, name, PackedLinear(linear))
            error = (forward() - wanted).abs().max() / wanted.abs().max()
            same = bool(error <= _CLOSE)
        except (AttributeError, RuntimeError):
            same = False
    if not same:
        for parent, name, linear in layers:
            setattr(parent, name, linear)
    return same


def _linear_layers(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Linear]]:
    """Each linear layer with the module that holds it and its name there."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                yield parent, name, child
