"""Where an encoder keeps its layers and, within a layer, queries, keys and values: a table of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from transformers import PretrainedConfig

from tinyqa_ray.core.errors import InputError

PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """Where a family of models keeps its layers and, within a layer, its projections."""

    layers: str
    """The list of layers or, where layers share weights, of the groups that they run."""
    within: str = ""
    """Name of the layer within an entry of that list; empty where the entry is the layer."""
    query: str
    key: str
    value: str
    packed: Literal["apart", "thirds", "heads"] = "apart"
    """How one matrix makes all three: one after the other, or one after the other for each head."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Parameters that are added to a projection after its matrix, by projection."""
    positions: str | None = None
    """What else enters the attention scores, beside queries and keys."""
    after: tuple[str, ...] = ()
    """Parts of the encoder that follow its last layer."""


_BERT = _Names(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
)
_ALBERT = _Names(
    layers="encoder.albert_layer_groups",
    within="albert_layers.0",
    query="attention.query",
    key="attention.key",
    value="attention.value",
)
_DEBERTA = _Names(
    layers="encoder.layer",
    query="attention.self.in_proj",
    key="attention.self.in_proj",
    value="attention.self.in_proj",
    packed="heads",
    biases={"query": "attention.self.q_bias", "value": "attention.self.v_bias"},
    positions="products with relative positions",
)
_DEBERTA_V2 = _Names(
    layers="encoder.layer",
    query="attention.self.query_proj",
    key="attention.self.key_proj",
    value="attention.self.value_proj",
    positions="products with relative positions",
)
_DISTILBERT = _Names(
    layers="transformer.layer", query="attention.q_lin", key="attention.k_lin", value="attention.v_lin"
)
_MODERNBERT = _Names(
    layers="layers",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    packed="thirds",
    positions="rotary positions",
    after=("final_norm",),
)
_MPNET = _Names(
    layers="encoder.layer",
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    positions="a bias for relative positions",
)
_FAMILIES: Mapping[str, _Names] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _BERT,
    "data2vec-text": _BERT,
    "deberta": _DEBERTA,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """A model without its head, and its layers."""

    names: _Names
    body: nn.Module
    """The encoder itself, embeddings included."""
    weights: nn.ModuleList
    """What holds the layers' weights: an entry for each layer or, in ALBERT, for each group of layers."""
    layers: nn.ModuleList
    """The layers in the order in which they run; layers that share weights are one module, several times."""

    def projection(self, layer: nn.Module, name: str, heads: int) -> tuple[nn.Module, Callable[..., Tensor]]:
        """The module of a layer that makes queries, keys or values, and how they are read off its output.

        Args:
            layer: one of ``layers``.
            name: "query", "key" or "value".
            heads: attention heads of the model.

        Returns:
            the module; and a function of its output that returns the projection, [B, T, D].
        """
        names, part = self.names, PROJECTIONS.index(name)
        bias = layer.get_parameter(names.biases[name]) if name in names.biases else None

        def read(output: Tensor) -> Tensor:
            if names.packed == "thirds":
                output = output.chunk(3, dim=-1)[part]
            elif names.packed == "heads":
                rows, tokens, width = output.shape
                by_head = output.view(rows, tokens, heads, 3, width // (3 * heads))
                output = by_head[:, :, :, part].reshape(rows, tokens, width // 3)
            return output if bias is None else output + bias

        return layer.get_submodule(getattr(names, name)), read


def find(model: nn.Module) -> Encoder:
    """Find the encoder of a model, which may have any head and may be wrapped (DDP, say).

    Raises:
        InputError: the family is not supported.
    """
    inner = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.get_submodule("module")
    config = getattr(inner, "config", None)
    model_type = getattr(config, "model_type", type(inner).__name__)
    if model_type not in _FAMILIES:
        raise InputError(f"the model is of type {model_type}; supported are {', '.join(sorted(_FAMILIES))}")
    names, body = _FAMILIES[model_type], inner.base_model
    assert isinstance(body, nn.Module)
    weights = body.get_submodule(names.layers)
    assert isinstance(weights, nn.ModuleList)
    assert config is not None
    layers = nn.ModuleList(weights[place].get_submodule(names.within) for place in weight_places(config))
    return Encoder(names=names, body=body, weights=weights, layers=layers)


def encoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the transformer layers of ``model``, the modules themselves, first to last.

    Layers that share weights (ALBERT's) are one module, which stands in the list several times.

    Raises:
        InputError: the family is not supported.
    """
    return find(model).layers


def parts_after_layers(model: nn.Module) -> list[nn.Module]:
    """Parts of a model's encoder that follow its last layer: they get no gradient from the layers."""
    encoder = find(model)
    return [encoder.body.get_submodule(name) for name in encoder.names.after]


def weight_places(config: PretrainedConfig) -> tuple[int, ...]:
    """For each layer, the number of the weights that it runs: its own or, in ALBERT, those of its group.

    Raises:
        InputError: an ALBERT whose groups hold several layers each.
    """
    layers = int(config.num_hidden_layers)
    groups = getattr(config, "num_hidden_groups", None)
    if groups is None:
        return tuple(range(layers))
    if (inner := getattr(config, "inner_group_num", 1)) != 1:
        raise InputError(
            f"the model's inner_group_num is {inner}; layers are read off ALBERT models where it is 1"
        )
    return tuple(int(layer / (layers / groups)) for layer in range(layers))  # as transformers computes it


def supported_families() -> tuple[str, ...]:
    """The families of which layers can be recorded, by their name in transformers (``model_type``)."""
    return tuple(_FAMILIES)


def positions_in_scores(config: PretrainedConfig) -> str | None:
    """What enters a model's attention scores beside queries and keys; None where nothing does."""
    names = _FAMILIES.get(config.model_type)
    relative = getattr(config, "relative_attention", True)  # DeBERTa's may be switched off
    return names.positions if names is not None and relative else None


def projection_names(model: nn.Module) -> set[str]:
    """Names of the modules, within a layer, whose own parameters make queries, keys and values."""
    names = find(model).names
    beside = {parameter.rpartition(".")[0] for parameter in names.biases.values()}
    return {names.query, names.key, names.value} | beside


def attention_heads(config: PretrainedConfig) -> int:
    """Return the number of attention heads of a layer, whatever the family calls it."""
    return int(config.num_attention_heads)
