"""A model in half precision whose head computes in fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tinyqa_ray.models import families

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_head_in_fp32(model: PreTrainedModel) -> None:
    """Let the head turn the encoder's half-precision states into logits in fp32; in fp32 nothing changes.

    bf16 has eight bits of mantissa: near 10, logits would be multiples of 1/16, and near spans or words would
    tie. Weights that the head shares with the encoder (the embeddings, by which words are predicted) become
    its own: the encoder keeps them in half precision.
    """
    if model.dtype not in (torch.bfloat16, torch.float16):
        return

    def widen(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            each.float() if torch.is_tensor(each) and each.is_floating_point() else each for each in inputs
        )

    for head in families.head_modules(model):
        for part in head.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                part.register_parameter(name, torch.nn.Parameter(weight.detach().float()))
        head.float().register_forward_pre_hook(widen)
