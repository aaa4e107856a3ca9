"""The mean of the weights of several models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForQuestionAnswering

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.soup import averaged


def model_of(layers: int, seed: int) -> BertForQuestionAnswering:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    return BertForQuestionAnswering(config).eval()


def test_average_of_models_is_the_mean_of_their_weights(tmp_path: Path) -> None:
    models = [model_of(2, seed) for seed in range(3)]
    for number, model in enumerate(models):
        model.save_pretrained(tmp_path / str(number))
    states = [dict(model.state_dict()) for model in models]
    wanted = {key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]}
    found = averaged(models[0], "0", [str(tmp_path / "1"), str(tmp_path / "2")]).state_dict()
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[key])


def test_average_of_other_shapes_is_refused_with_both(tmp_path: Path) -> None:
    model_of(4, 0).save_pretrained(tmp_path / "deep")
    with pytest.raises(InputError, match=r"deep: has bert.encoder.layer.[23].* and shallow of none"):
        averaged(model_of(2, 0), "shallow", [str(tmp_path / "deep")])
