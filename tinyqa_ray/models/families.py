"""Differences between families of models, read from a model's class and configuration where possible.

A model can be used if it gives one start logit and one end logit for each token. Everything else about a
family (its name for the head, where its positions start, whether it takes token types, which attention it
has) is determined here, so that no other module asks for a family by name.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from tinyqa_ray.core.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import nn
    from transformers import PreTrainedModel

_REFUSED = {
    "layoutlmv2": "reads pictures of pages",
    "layoutlmv3": "reads pictures of pages",
    "lxmert": "reads pictures",
    "xlnet": "puts its classification token last and pads on the left",
}
"""Families with a question-answering head that cannot be used here, and why."""
_BEAM_HEADS = ("XLNetForQuestionAnswering", "XLMForQuestionAnswering", "FlaubertForQuestionAnswering")
"""Classes whose end logits depend on a beam of starts; transformers uses others for these families."""
_UNPADDED = ("canine", "convbert", "fnet", "funnel", "nystromformer", "yoso")
"""Families whose answers depend on the padding after a window: they convolve, pool or mix over it."""
_ROW_BY_ROW = ("mobilebert", "xmod")
"""Families that need a row for each window: embeddings are mixed with their neighbours', or a row has a
language."""
_TYPES_WITHOUT_VOCABULARY = ("funnel",)
"""Families that compare token types instead of embedding them."""
_DROPOUTS = ("attention_probs_dropout_prob", "attention_dropout", "attention_prob_dropout")
_UNLIMITED = 1 << 30


def refuse_unreadable(name: str, config: Any) -> None:
    """Refuse a model that cannot give a start and an end logit for each token, before weights are loaded.

    Args:
        name: name of the model, for the message.
        config: its configuration.

    Raises:
        InputError: the model is refused; the message names its family and the reason.
    """
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING

    kind = config.model_type
    heads = [head for head in config.architectures or () if head in _BEAM_HEADS]
    reason = _REFUSED.get(kind)
    if getattr(config, "is_encoder_decoder", False):
        reason = "is an encoder with a decoder"
    elif heads:
        reason = f"has a beam-search head ({heads[0]}), whose end depends on the start"
    elif type(config) not in MODEL_FOR_QUESTION_ANSWERING_MAPPING:
        reason = "has no question-answering class in transformers"
    if reason is not None:
        raise InputError(
            f"{name}: is of the family {kind}, which {reason}; give an encoder whose head gives a start and "
            "an end logit for each token (BERT, RoBERTa, DeBERTa, MPNet, ModernBERT, …)"
        )


def head_keys(prefix: str, keys: Iterable[str]) -> list[str]:
    """Names of the weights that make up a model's head: those that its encoder does not hold.

    Args:
        prefix: ``base_model_prefix`` of the model's class.
        keys: names of weights.
    """
    return sorted(key for key in keys if not key.startswith(f"{prefix}."))


def head_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The parts of a model that turn hidden states into logits, in order; all but its encoder."""
    return [module for name, module in model.named_children() if name != model.base_model_prefix]


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Names of a model's inputs: token ids, the mask if it takes one, and token types if it uses them."""
    mask = ("attention_mask",) if "attention_mask" in inspect.signature(model.forward).parameters else ()
    return ("input_ids", *mask, *(("token_type_ids",) if uses_types(model) else ()))


def can_be_padded(config: Any) -> bool:
    """Whether windows of different lengths may share a forward, with the shorter ones padded and masked."""
    return config.model_type not in _UNPADDED


def can_be_unpadded(model: PreTrainedModel) -> bool:
    """Whether windows may follow each other in one row, each with its own positions and attention.

    The class must take positions and pass what belongs to attention on to transformers' attention functions;
    relative positions that are added to the scores, convolutions and attention of a class's own cannot.
    """
    taken = inspect.signature(model.forward).parameters
    return (
        type(model).is_backend_compatible()
        and {"position_ids", "kwargs"} <= taken.keys()
        and can_be_padded(model.config)
        and model.config.model_type not in _ROW_BY_ROW
        and not any(getattr(module, "is_causal", False) for module in model.modules())
    )


def first_position(model: PreTrainedModel) -> int:
    """Position of a window's first token: 0, or the one after the padding id (RoBERTa and its kin)."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(padding) + 1
    return 0


def uses_types(model: PreTrainedModel) -> bool:
    """Whether a model distinguishes question and context by token types."""
    config = model.config
    taken = "token_type_ids" in inspect.signature(model.forward).parameters
    counted = (getattr(config, "type_vocab_size", 0) or 0) > 1
    return taken and (counted or config.model_type in _TYPES_WITHOUT_VOCABULARY)


def settle(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model's logits depend on its inputs alone, and return the model.

    BigBird's sparse attention depends on the padding and, after one short window, is replaced by full
    attention permanently. So the model gets full attention here, which it uses for windows of up to 704
    tokens anyway.
    """
    if hasattr(model.base_model, "set_attention_type"):
        model.base_model.set_attention_type("original_full")
    return model


def attention_dropout(config: Any, value: float | None) -> dict[str, float]:
    """Attention dropout under the name that the model's family uses for it; empty if ``value`` is None."""
    names = [name for name in _DROPOUTS if hasattr(config, name)]
    return {} if value is None else dict.fromkeys(names[:1], value)


def max_window_tokens(config: Any) -> int:
    """Most tokens that a model can read in one window.

    If positions start after the padding id (RoBERTa and related families), a table of 514 positions serves
    512 tokens. Relative and rotary positions have no table; then the configuration's value is returned.
    """
    return _reach(cast("Hashable", type(config)), config.to_json_string())


@functools.lru_cache(maxsize=64)
def _reach(kind: Any, values: str) -> int:
    import torch
    from transformers import AutoModel

    config = kind.from_dict(json.loads(values))
    positions = getattr(config, "max_position_embeddings", None) or 0
    try:
        with torch.device("meta"):  # tensors have shapes, but take no memory
            model = AutoModel.from_config(config)
    except (ValueError, KeyError, RuntimeError, ImportError, TypeError):
        return positions if positions > 0 else _UNLIMITED
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(module.weight.shape[0]) - int(padding) - 1
    return positions if positions > 0 else _UNLIMITED
