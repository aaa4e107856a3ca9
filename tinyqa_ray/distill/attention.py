"""Attention in float32 where training on a CPU is in bf16, in which torch's kernel is slower there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "tinyqa_fp32"


def attend_in_fp32(model: PreTrainedModel) -> None:
    """Let a model attend in float32 under autocast; its matrix products stay in autocast's precision."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    model.set_attn_implementation(_NAME)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention by torch's fused kernel, as transformers calls it.

    Shapes:
        query, key, value: ``(B, heads, T, width of a head)``; the output ``(B, T, heads, width of a head)``.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **given
        )
    return output
