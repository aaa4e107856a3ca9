"""Layers are taught in families whose layers differ from BERT's, from student and teacher in folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    DebertaConfig,
    DebertaV2Config,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
)

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import Batch
from tinyqa_ray.distill.encoders import encoder_layers
from tinyqa_ray.distill.loop import build

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
CONFIGS: dict[str, PretrainedConfig] = {
    "albert": AlbertConfig(**SIZES, embedding_size=16),
    "albert of 2 groups": AlbertConfig(**SIZES, embedding_size=16, num_hidden_groups=2),
    "deberta": DebertaConfig(**SIZES, **RELATIVE),
    "deberta-v2": DebertaV2Config(**SIZES, **RELATIVE),
    "modernbert": ModernBertConfig(**SIZES, pad_token_id=1, cls_token_id=0, sep_token_id=2),
    "mpnet": MPNetConfig(**SIZES),
}
MASK = torch.arange(9)[None, :] < torch.tensor([9, 5])[:, None]
TOKENS = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0)).masked_fill(~MASK, 1)
BATCH = Batch(
    input_ids=TOKENS,
    token_type_ids=torch.zeros_like(TOKENS),
    token_mask=MASK,
    lengths=MASK.sum(dim=1),
    start_positions=torch.tensor([3, 0]),
    end_positions=torch.tensor([4, 0]),
    start_logits=None,
    end_logits=None,
    samples=2,
    tokens=14,
    pairs=81 + 25,
)


@pytest.mark.parametrize("objective", ["intermediate", "relations"])
@pytest.mark.parametrize("family", CONFIGS)
def test_student_of_some_layers_learns_its_teachers_layers(
    family: str, objective: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    teacher = AutoModelForQuestionAnswering.from_config(CONFIGS[family])
    with torch.no_grad():
        for name, parameter in teacher.named_parameters():
            if parameter.ndim == 2 and "embeddings." not in name:
                parameter.mul_(8.0)  # else every layer is nearly the identity
    teacher.save_pretrained(tmp_path)
    config = DistillConfig(
        data="-",
        student=str(tmp_path),
        student_layers=(0, 3),
        teacher=str(tmp_path),
        objective=(objective,),
        learning_rate=1e-3,
    )
    model = build(config)
    assert len(encoder_layers(model.student)) == 2
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(6):
        optimiser.zero_grad()
        loss = torch.stack(list(model.eval()(BATCH).values())).sum()
        loss.backward()
        # Workers would wait for a gradient that never comes.
        assert all(parameter.grad is not None for parameter in trained)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0]
