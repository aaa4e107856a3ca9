"""How transformers attends in training: without waiting for the device, and in float32 on a CPU."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "tinyqa_fp32"
_PLAIN = ("sdpa", "eager")
"""Names in transformers of the ways of attention that models take by themselves."""


@contextlib.contextmanager
def masks_unread() -> Iterator[None]:
    """Have transformers make a mask for every batch, without looking whether any of its windows is padded.

    It looks (``padding_mask.all()``, once a forward) to leave the mask out where none is. A host that looks
    waits for the device, which then idles while the host launches what follows.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    for name in _PLAIN:
        ALL_MASK_ATTENTION_FUNCTIONS[name] = _always(ALL_MASK_ATTENTION_FUNCTIONS[name])
    try:
        yield
    finally:
        for name in _PLAIN:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]


@functools.cache  # torch.compile would compile anew for a new function
def _always(make: Callable[..., Any]) -> Callable[..., Any]:
    """A maker of masks that never leaves one out."""

    def made(**given: Any) -> Any:
        return make(**{**given, "allow_is_bidirectional_skip": False, "allow_is_causal_skip": False})

    return made


def attend_in_fp32(model: PreTrainedModel) -> None:
    """Compute a model's attention in float32 under autocast; the rest stays in autocast's precision."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, _always(sdpa_mask))
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
