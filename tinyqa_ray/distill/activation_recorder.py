"""Queries, keys, values and hidden states of an encoder, read by hooks during a normal forward.

transformers 5 refuses ``output_attentions`` under SDPA attention. Instead, the recorder reads the
projections from which attention is computed: student and teacher keep the fast kernel, and attention maps are
computed only for the layers that a loss asks for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.encoders import PROJECTIONS, attention_heads, find


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
        what: Collection[str] = PROJECTIONS,
        hidden_states: Sequence[int] = (),
    ) -> None:
        encoder = find(model)
        _check_indices("layer", layers, len(encoder.layers) - 1)
        _check_indices("hidden state", hidden_states, len(encoder.layers))
        if unknown := sorted(set(what) - set(PROJECTIONS)):
            raise InputError(f"cannot record {', '.join(unknown)}; a layer has {', '.join(PROJECTIONS)}")
        self._layers = sorted(set(layers))
        self._what = sorted(set(what))
        self._hidden_states = sorted(set(hidden_states))
        self._seen: dict[tuple[str, int], Tensor] = {}
        self._calls: Counter[tuple[str, int]] = Counter()
        self._recording = False
        self._handles = [
            encoder.body.register_forward_pre_hook(self._begin),
            encoder.body.register_forward_hook(self._end, always_call=True),
        ]
        # Layers that share weights are one module, which runs several times in a forward.
        places: dict[nn.Module, list[int]] = {}
        for place, layer in enumerate(encoder.layers):
            places.setdefault(layer, []).append(place)
        heads = attention_heads(encoder.body.config) if self._layers else 0
        for layer, where in places.items():
            if set(where) & set(self._layers):
                for name in self._what:
                    module, read = encoder.projection(layer, name, heads)
                    hook = self._keep_output(name, where, self._layers, read)
                    self._handles.append(module.register_forward_hook(hook))
            above = [place + 1 for place in where]
            if set(above) & set(self._hidden_states):
                hook = self._keep_output("hidden", above, self._hidden_states, _first)
                self._handles.append(layer.register_forward_hook(hook))
        if 0 in self._hidden_states:
            # Not the embedding module's output: ELECTRA projects that before the first layer.
            handle = encoder.layers[0].register_forward_pre_hook(self._keep_embeddings, with_kwargs=True)
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
        self._calls.clear()
        self._recording = True

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        # Gradient checkpointing runs layers again in the backward pass; those tensors are not wanted.
        self._recording = False

    def _keep_output(
        self, name: str, places: Sequence[int], wanted: Collection[int], read: Callable[[Any], Tensor]
    ) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that keeps what ``read`` makes of a module's output.

        Args:
            name: under which it is kept.
            places: under which number each of the module's calls in a forward is kept, in order.
            wanted: the numbers that are kept.
            read: takes the output.
        """

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._recording:
                place = places[self._calls[name, places[0]]]
                self._calls[name, places[0]] += 1
                if place in wanted:
                    self._seen[name, place] = read(output)

        return hook

    def _keep_embeddings(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._recording:  # only the first call: what shares the first layer's weights runs later
            self._seen.setdefault(("hidden", 0), args[0] if args else kwargs["hidden_states"])


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


def _check_indices(thing: str, indices: Sequence[int], highest: int) -> None:
    wrong = [index for index in indices if not 0 <= index <= highest]
    if wrong:
        raise InputError(f"there is no {thing} {wrong[0]}; the model has {thing}s 0 to {highest}")


def _first(output: Any) -> Tensor:
    """A layer's hidden states, which some families return in a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
