"""Windows without padding: the tokens of a batch in one row, and attention within each window.

Padding is read by every matrix of a padded batch and thrown away at the end. Here the matrices read the
tokens alone, and torch's attention kernel for sequences of different lengths is told where each one ends.
Transformers passes what it needs from ``forward`` to the attention, so no model is rewritten.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tinyqa_ray.datasets.windows import Int, Tokens
from tinyqa_ray.engines.engine import Index
from tinyqa_ray.models import families

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "tinyqa_unpadded"
_KERNEL = "torch.nn.attention.varlen"
_CHECKED_TOKENS = (24, 41, 9)
"""Tokens of the windows on which a model's logits are compared with those of each window alone."""
_CLOSE = {torch.float32: 1e-3, torch.float16: 0.15, torch.bfloat16: 0.15}
"""Largest ``difference`` there. With tinyqa-mini, bf16 itself makes 0.01, attention that reaches into other
windows 0.6, and positions that begin elsewhere 1.4; a model that was never trained hardly tells."""


def obstacle(model: PreTrainedModel, device: torch.device) -> str:
    """Why a model cannot run without padding on a device; empty where it can.

    Args:
        model: a question-answering model, on that device and in eval mode.
        device: a CPU, where attention is computed for one window after the other, or a GPU.
    """
    kind = model.config.model_type
    if not families.can_be_unpadded(model):
        return f"{kind} needs padded windows"
    if device.type == "cuda":
        if model.dtype not in (torch.float16, torch.bfloat16):
            return "the kernel needs fp16 or bf16"
        if importlib.util.find_spec(_KERNEL) is None or torch.cuda.get_device_capability(device)[0] < 8:
            return "there is no kernel for this GPU"
    try:
        share = difference(model, device)
    except Exception as error:  # kernels, and other versions of transformers, have their own
        return f"the kernel fails: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return "" if share <= _CLOSE.get(model.dtype, 1e-3) else f"{kind} gives other logits without padding"


class Unpadded:
    """A model that reads the windows of a batch in one row of tokens."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        """Take a model, which itself stays as it is; its weights are shared."""
        from transformers import AttentionInterface

        AttentionInterface.register(_NAME, _attend)
        self.device = device
        self._model = _sharing_weights(model)
        self._model.set_attn_implementation(_NAME)
        self._first_position = families.first_position(model)
        self._reads_types = families.uses_types(model)

    @torch.inference_mode()
    def __call__(self, windows: Tokens, batch: Index) -> Tensor:
        """Start and end logits of a batch, ``(2, B, T)``; zeros beyond a window's tokens."""
        lengths = windows.lengths[batch].astype(np.int64)
        ends, longest = np.cumsum(lengths), int(lengths.max())
        places = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        inputs = {
            "input_ids": _in_a_row(windows.input_ids, batch),
            "position_ids": places[None] + self._first_position,
        }
        if self._reads_types:
            inputs["token_type_ids"] = _in_a_row(windows.type_ids, batch)
        bounds = self._there(np.concatenate([[0], ends]).astype(np.int32))
        output = self._model(
            **{name: self._there(values) for name, values in inputs.items()},
            cu_seq_lens_q=bounds,
            cu_seq_lens_k=bounds,
            max_length_q=longest,
            max_length_k=longest,
        )
        logits = torch.cat([output.start_logits, output.end_logits])
        rows = np.repeat(np.arange(len(batch)), lengths)
        made = logits.new_zeros(2, len(batch) * longest)
        made.index_copy_(1, self._there(rows * longest + places), logits)
        return made.view(2, len(batch), longest)

    def _there(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)


def _in_a_row(rows: Sequence[Int], batch: Index) -> NDArray[np.int64]:
    return np.concatenate([rows[window] for window in batch])[None].astype(np.int64)


def _sharing_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model, with its own configuration, whose parameters and buffers are those of the model."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention within each window, with the signature that transformers expects.

    Shapes:
        query, key, value: ``(1, heads, tokens of all windows, width of a head)``; the output
        ``(1, tokens of all windows, heads, width of a head)``.
        cu_seq_lens_q: where each window begins, and the end of the last one.
    """
    assert mask is None
    assert len(query) == 1
    # Local attention sees as many tokens on either side, itself not counted.
    reach = None if sliding_window is None else sliding_window - 1
    if query.device.type == "cpu":
        return _one_by_one(query, key, value, cu_seq_lens_q.tolist(), scaling, reach), None
    # Only what is not the kernel's own default, since its options differ between versions of torch.
    options: dict[str, Any] = {} if reach is None else {"window_size": (reach, reach)}
    if scaling is not None and scaling != query.shape[-1] ** -0.5:
        options["scale"] = scaling
    flat = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
    bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
    made: Tensor = _kernel()(*flat, *bounds, **options)
    return made[None], None


@functools.cache
def _kernel() -> Any:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, bounds: list[int], scaling: float | None, reach: int | None
) -> Tensor:
    made = []
    for begin, end in itertools.pairwise(bounds):
        mask = None
        if reach is not None:
            places = torch.arange(end - begin)
            mask = (places[:, None] - places).abs() <= reach
        one, two, three = (each[:, :, begin:end] for each in (query, key, value))
        made.append(
            nn.functional.scaled_dot_product_attention(one, two, three, attn_mask=mask, scale=scaling)
        )
    return torch.cat(made, 2).transpose(1, 2)


def difference(model: PreTrainedModel, device: torch.device) -> float:
    """How far the logits of made-up windows in one row are from those of each alone, by the model as it is.

    Returns:
        the difference as a share of the logits' spread, both as root mean squares; 0 where both are 0.
    """
    draw, names = np.random.default_rng(0), families.input_names(model)
    reach = families.max_window_tokens(model.config)
    vocabulary = np.setdiff1d(np.arange(model.config.vocab_size), [model.config.pad_token_id or 0])
    ids = [draw.choice(vocabulary, min(tokens, reach)).astype(np.int32) for tokens in _CHECKED_TOKENS]
    types = [(np.arange(len(each)) > len(each) // 3).astype(np.int32) for each in ids]
    together = Unpadded(model, device)(Tokens(ids, types), np.arange(len(ids))).float()
    spread, differ = [], []
    for row, (each, kinds) in enumerate(zip(ids, types, strict=True)):
        values = {"input_ids": each, "attention_mask": np.ones_like(each), "token_type_ids": kinds}
        with torch.inference_mode():
            alone = model(**{name: torch.from_numpy(values[name])[None].long().to(device) for name in names})
        logits = torch.cat([alone.start_logits, alone.end_logits]).float()
        spread.append(logits - logits.mean(1, keepdim=True))
        differ.append(logits - together[:, row, : len(each)])
    apart, wide = (float(torch.cat(each, 1).square().mean().sqrt()) for each in (differ, spread))
    return apart / wide if apart else 0.0
