"""Queries, keys, values and hidden states of an encoder, read by hooks during a normal forward.

transformers 5 refuses ``output_attentions`` under SDPA attention. Instead, the recorder reads the
projections from which attention is computed: student and teacher keep the fast kernel, and attention maps are
computed only for the layers that a loss asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tinyqa_ray.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """Where a family of models keeps its layers and, within a layer, its projections."""

    layers: str
    query: str
    key: str
    value: str
    positions: str | None = None
    """What else enters the attention scores, beside queries and keys."""


_BERT = _Names(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
)
_DISTILBERT = _Names(
    layers="transformer.layer", query="attention.q_lin", key="attention.k_lin", value="attention.v_lin"
)
_MPNET = _Names(
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    positions="a bias for relative positions",
)
_DEBERTA_V2 = _Names(
    layers="encoder.layer",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    positions="products with relative positions",
)
# One matrix makes all three, one after the other.
_MODERNBERT = _Names(
    layers="layers", query="attn.Wqkv", key="attn.Wqkv", value="attn.Wqkv", positions="rotary positions"
)
_FAMILIES: Mapping[str, _Names] = {
    "bert": _BERT,
    "camembert": _BERT,
    "data2vec-text": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "ernie": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "roberta": _BERT,
    "splinter": _BERT,
    "xlm-roberta": _BERT,
}
_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True, slots=True)
class QKV:
    """Projections of one layer, [B, T, D] each before the split into heads; None where not asked for."""

    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """What was recorded of one forward, still attached to the autograd graph."""

    layers: Mapping[int, QKV]
    """Projections by layer, from 0."""
    hidden_states: Mapping[int, Tensor]
    """[B, T, D] by index: 0 is the embeddings, i the output of layer i - 1."""


class ActivationRecorder:
    """Hooks on chosen layers of an encoder; ``take`` returns what the last forward computed there.

    The hooks sit on the inner modules: the model may be wrapped (DDP, say) before or after. Use it as a
    context manager, or call ``close``. Gradients flow through what ``take`` returns; with gradient
    checkpointing, only if it is non-reentrant, the default of transformers.

    Args:
        model: an encoder, with any head, of a supported family.
        layers: layers whose projections are kept, from 0.
        what: which of "query", "key", "value" are kept.
        hidden_states: indices of hidden states to keep, 0 (the embeddings) to the number of layers.

    Raises:
        InputError: the family is not supported, or a layer, a hidden state or a projection does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] = (),
        what: Collection[str] = _PROJECTIONS,
        hidden_states: Sequence[int] = (),
    ) -> None:
        names, encoder, modules = _find(model)
        _check_indices("layer", layers, len(modules) - 1)
        _check_indices("hidden state", hidden_states, len(modules))
        if unknown := sorted(set(what) - set(_PROJECTIONS)):
            raise InputError(f"cannot record {', '.join(unknown)}; a layer has {', '.join(_PROJECTIONS)}")
        self._layers = sorted(set(layers))
        self._what = sorted(set(what))
        self._hidden_states = sorted(set(hidden_states))
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._recording = False
        self._handles = [
            encoder.register_forward_pre_hook(self._begin),
            encoder.register_forward_hook(self._end, always_call=True),
        ]
        for layer in self._layers:
            for name in self._what:
                projection = modules[layer].get_submodule(getattr(names, name))
                part = _PROJECTIONS.index(name) if names.query == names.key else None
                self._handles.append(projection.register_forward_hook(self._keep_output(name, layer, part)))
        for index in self._hidden_states:
            if index == 0:
                # Not the embedding module's output: ELECTRA projects that before the first layer.
                handle = modules[0].register_forward_pre_hook(self._keep_embeddings, with_kwargs=True)
            else:
                handle = modules[index - 1].register_forward_hook(self._keep_output("hidden", index))
            self._handles.append(handle)

    def __enter__(self) -> ActivationRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and forget what they kept."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def take(self) -> Activations:
        """Return what the last forward computed, and forget it, so that no graph is kept alive.

        Raises:
            RuntimeError: no forward finished since the last call.
        """
        seen, self._seen = self._seen, {}
        if len(seen) != len(self._layers) * len(self._what) + len(self._hidden_states):
            raise RuntimeError("the recorded model has not finished a forward since the last take")
        return Activations(
            layers={layer: QKV(**{name: seen[name, layer] for name in self._what}) for layer in self._layers},
            hidden_states={index: seen["hidden", index] for index in self._hidden_states},
        )

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._seen = {}
        self._recording = True

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        # Gradient checkpointing runs layers again in the backward pass; those tensors are not wanted.
        self._recording = False

    def _keep_output(
        self, name: str, index: int, part: int | None = None
    ) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that keeps a module's output or, if it makes all three projections, one of them."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._recording:
                kept = output[0] if isinstance(output, tuple) else output
                self._seen[name, index] = kept if part is None else kept.chunk(3, dim=-1)[part]

        return hook

    def _keep_embeddings(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:
            self._seen["hidden", 0] = args[0] if args else kwargs["hidden_states"]


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the transformer layers of ``model``, the modules themselves, first to last.

    Raises:
        InputError: the family is not supported.
    """
    return _find(model)[2]


def supported_families() -> tuple[str, ...]:
    """The families of which layers can be recorded, by their name in transformers (``model_type``)."""
    return tuple(_FAMILIES)


def positions_in_scores(config: PretrainedConfig) -> str | None:
    """What enters a model's attention scores beside queries and keys; None where nothing does."""
    names = _FAMILIES.get(config.model_type)
    relative = getattr(config, "relative_attention", True)  # DeBERTa's may be switched off
    return names.positions if names is not None and relative else None


def projection_names(model: nn.Module) -> set[str]:
    """Names of the modules, within a layer, that make queries, keys and values."""
    names = _find(model)[0]
    return {names.query, names.key, names.value}


def attention_heads(config: PretrainedConfig) -> int:
    """Return the number of attention heads of a layer, whatever the family calls it."""
    return int(config.num_attention_heads)


def attention_scores(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Attention scores before mask and softmax: Q Kᵀ / √d for each head of width d = D / ``heads``.

    Args:
        query: [B, T, D].
        key: [B, T, D].
        heads: attention heads of the model that made them; divides D.

    Returns:
        [B, heads, T, T] in float32, queries along the third axis and keys along the last.
    """
    rows, tokens, width = query.shape
    assert width % heads == 0, (width, heads)
    # Autocast would compute the product in half precision, whatever the type of its inputs.
    with torch.autocast(device_type=query.device.type, enabled=False):
        split_query = query.float().view(rows, tokens, heads, width // heads).transpose(1, 2)
        split_key = key.float().view(rows, tokens, heads, width // heads).transpose(1, 2)
        return split_query @ split_key.transpose(2, 3) / math.sqrt(width // heads)


def attention_probabilities(scores: Tensor, token_mask: Tensor) -> Tensor:
    """Softmax of ``scores`` [B, H, T, T] over the real keys; ``token_mask`` is [B, T] bool. No dropout."""
    masked = scores.masked_fill(~token_mask[:, None, None, :], torch.finfo(scores.dtype).min)
    return torch.softmax(masked, dim=-1)


def _find(model: nn.Module) -> tuple[_Names, nn.Module, nn.ModuleList]:
    """Return the names of the family, the encoder (the model without its head) and its layers."""
    inner = model
    while isinstance(getattr(inner, "module", None), nn.Module):  # DDP and its like
        inner = inner.get_submodule("module")
    model_type = getattr(getattr(inner, "config", None), "model_type", type(inner).__name__)
    if model_type not in _FAMILIES:
        raise InputError(f"the model is of type {model_type}; supported are {', '.join(sorted(_FAMILIES))}")
    names = _FAMILIES[model_type]
    encoder = inner.base_model
    assert isinstance(encoder, nn.Module)
    layers = encoder.get_submodule(names.layers)
    assert isinstance(layers, nn.ModuleList)
    return names, encoder, layers


def _check_indices(thing: str, indices: Sequence[int], highest: int) -> None:
    wrong = [index for index in indices if not 0 <= index <= highest]
    if wrong:
        raise InputError(f"there is no {thing} {wrong[0]}; the model has {thing}s 0 to {highest}")
