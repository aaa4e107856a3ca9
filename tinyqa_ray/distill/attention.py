"""Attention in float32 for training in bf16 on a CPU, where torch's attention kernel is slower in bf16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyqa_ray.models.masks import made_always

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "tinyqa_fp32"


def attend_in_fp32(model: PreTrainedModel) -> None:
    """Compute a model's attention in float32 under autocast; the rest stays in autocast's precision."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, made_always(sdpa_mask))
    model.set_attn_implementation(_NAME)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention in float32 by torch's fused kernel, with the signature that transformers expects.

    Shapes:
        query, key, value: ``(B, heads, T, width of a head)``; the output ``(B, T, heads, width of a head)``.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **given
        )
    return output
