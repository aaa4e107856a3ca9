"""Small models of many families with made-up weights, and windows for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf

from tinyqa_ray.datasets.windows import Tokens

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 130,
}
IDS: dict[str, Any] = {f"{name}_token_id": i for i, name in enumerate(("pad", "cls", "sep", "bos", "eos"))}
DISTILBERT: dict[str, Any] = {"vocab_size": 400, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
ABLE: dict[str, hf.PretrainedConfig] = {
    "albert": hf.AlbertConfig(**SIZES, embedding_size=16),
    "bert": hf.BertConfig(**SIZES),
    "camembert": hf.CamembertConfig(**SIZES),
    "data2vec-text": hf.Data2VecTextConfig(**SIZES),
    "distilbert": hf.DistilBertConfig(**DISTILBERT, max_position_embeddings=130),
    "electra": hf.ElectraConfig(**SIZES, embedding_size=16),
    "ernie": hf.ErnieConfig(**SIZES),
    # Every other layer sees eight tokens on either side.
    "modernbert": hf.ModernBertConfig(**SIZES, **IDS, local_attention=16, global_attn_every_n_layers=2),
    "roberta": hf.RobertaConfig(**SIZES),
    "roberta-prelayernorm": hf.RobertaPreLayerNormConfig(**SIZES),
    "xlm-roberta": hf.XLMRobertaConfig(**SIZES),
    "xlm-roberta-xl": hf.XLMRobertaXLConfig(**SIZES),
}
UNABLE: dict[str, hf.PretrainedConfig] = {
    "convbert": hf.ConvBertConfig(**SIZES, embedding_size=16),
    "deberta-v2": hf.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "gpt2": hf.GPT2Config(vocab_size=400, n_positions=130, n_embd=16, n_layer=2, n_head=2, **IDS),
    "mobilebert": hf.MobileBertConfig(**SIZES, embedding_size=16, intra_bottleneck_size=16),
    "mpnet": hf.MPNetConfig(**SIZES),
    "splinter": hf.SplinterConfig(**SIZES),
    "xmod": hf.XmodConfig(**SIZES, languages=["en"], default_language="en"),
}
LENGTHS = (100, 3, 64, 1, 17, 128)


def model(config: hf.PretrainedConfig) -> Any:
    """Weights so wide that attention to another token changes the logits."""
    torch.manual_seed(0)
    made = hf.AutoModelForQuestionAnswering.from_config(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def windows(*lengths: int) -> Tokens:
    draw = np.random.default_rng(3)
    return Tokens(
        [draw.integers(5, 400, length).astype(np.int32) for length in lengths],
        [(np.arange(length) > length // 3).astype(np.int32) for length in lengths],
    )


def furthest(one: Any, other: Any) -> float:
    pairs = [pair for sides in zip(one, other, strict=True) for pair in zip(*sides, strict=True)]
    return max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)
