from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    CamembertConfig,
    Data2VecTextConfig,
    DebertaConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ErnieConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    RemBertConfig,
    RobertaConfig,
    SplinterConfig,
    XLMRobertaConfig,
)

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import layers
from tinyqa_ray.distill.activation_recorder import (
    ActivationRecorder,
    attention_probabilities,
    attention_scores,
)
from tinyqa_ray.distill.encoders import attention_heads, encoder_layers
from tinyqa_ray.distill.layers import check_heads

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "albert": AlbertConfig(**SIZES, embedding_size=16),
    "albert of 2 groups": AlbertConfig(**SIZES, embedding_size=16, num_hidden_groups=2),
    "bert": BertConfig(**SIZES),
    "camembert": CamembertConfig(**SIZES),
    "distilbert": DistilBertConfig(
        vocab_size=40, dim=24, n_layers=3, n_heads=4, hidden_dim=32, max_position_embeddings=24
    ),
    "electra": ElectraConfig(**SIZES, embedding_size=16),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "data2vec-text": Data2VecTextConfig(**SIZES),
    "ernie": ErnieConfig(**SIZES),
    "splinter": SplinterConfig(**SIZES),
    # Scores hold positions; here without them, so that the rest can be compared.
    "deberta": DebertaConfig(**SIZES),
    "deberta-v2": DebertaV2Config(**SIZES),
    "modernbert": ModernBertConfig(**SIZES, pad_token_id=1, cls_token_id=0, sep_token_id=2),
    "mpnet": MPNetConfig(**SIZES),
}
EAGER_ONLY = ("deberta", "deberta-v2", "mpnet", "splinter")
every_family = pytest.mark.parametrize("family", CONFIGS)
# The newer name of gradient_checkpointing_enable is not in every transformers 5.
checkpointed = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")

MASK = torch.arange(9)[None, :] < torch.tensor([9, 5])[:, None]
TOKENS = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0)).masked_fill(~MASK, 1)
INPUTS = {"input_ids": TOKENS, "attention_mask": MASK.long()}


def make_model(family: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(1)
    fused = {} if family in EAGER_ONLY else {"attn_implementation": attention}
    model = AutoModelForQuestionAnswering.from_config(CONFIGS[family], **fused)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings." not in name:
                parameter.mul_(20.0)  # the initial scale makes every attention nearly uniform
            if "relative_attention_bias" in name:
                parameter.zero_()
            if name.endswith(("q_bias", "v_bias")):
                parameter.normal_()
    return model.eval()


def inputs_of(family: str) -> dict[str, Tensor]:
    """Inputs of a model; rotary positions all 0, so that they rotate nothing."""
    return INPUTS | ({"position_ids": torch.zeros_like(TOKENS)} if family == "modernbert" else {})


def real(hidden: Tensor) -> Tensor:
    return hidden[MASK]


@every_family
def test_scores_give_the_attentions_of_the_eager_model(family: str) -> None:
    reference = make_model(family, "eager")(**inputs_of(family), output_attentions=True).attentions
    model = make_model(family)
    assert family in EAGER_ONLY or model.config._attn_implementation == "sdpa"
    heads = attention_heads(model.config)
    with ActivationRecorder(model, layers=(0, 2), what=("query", "key")) as recorder:
        model(**inputs_of(family))
        layers = recorder.take().layers
    assert sorted(layers) == [0, 2]
    for index, layer in layers.items():
        assert layer.query is not None
        assert layer.key is not None
        assert layer.value is None
        scores = attention_scores(layer.query, layer.key, heads)
        assert scores.shape == (2, 4, 9, 9)
        probabilities = attention_probabilities(scores, MASK)
        # DeBERTa masks the rows of padding, too.
        mine, its = (each.transpose(1, 2)[MASK] for each in (probabilities, reference[index]))
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
    assert float(reference[2][0].detach().std()) > 0.02, "attention is too even to tell layers apart"


@every_family
def test_hidden_states_are_those_of_the_model_and_logits_do_not_change(family: str) -> None:
    model = make_model(family)
    reference = model(**INPUTS, output_hidden_states=True)
    with ActivationRecorder(model, layers=(1,), hidden_states=(0, 1, 3)) as recorder:
        logits = model(**INPUTS).start_logits
        hidden_states = recorder.take().hidden_states
    torch.testing.assert_close(logits, reference.start_logits)
    assert sorted(hidden_states) == [0, 1, 3]
    for index, hidden in hidden_states.items():
        if family == "modernbert" and index == 3:
            continue  # transformers gives it behind the final norm
        torch.testing.assert_close(real(hidden), real(reference.hidden_states[index]))


@pytest.mark.parametrize("family", [name for name in CONFIGS if name not in ("deberta", "modernbert")])
def test_values_are_the_projection_of_the_layers_input(family: str) -> None:
    model = make_model(family)
    with ActivationRecorder(model, layers=(1,), what=("value",), hidden_states=(1,)) as recorder:
        model(**INPUTS)
        recorded = recorder.take()
    others = {
        "albert": "attention.value",
        "albert of 2 groups": "attention.value",
        "deberta-v2": "attention.self.value_proj",
        "distilbert": "attention.v_lin",
        "mpnet": "attention.attn.v",
    }
    name = others.get(family, "attention.self.value")
    projection = encoder_layers(model)[1].get_submodule(name)
    value = recorded.layers[1].value
    assert value is not None
    torch.testing.assert_close(value, projection(recorded.hidden_states[1]))


def test_values_of_deberta_give_what_its_attention_gives() -> None:
    """One matrix makes its queries, keys and values, side by side for each head, and a bias follows."""
    model = make_model("deberta")
    given: list[Tensor] = []
    attention = encoder_layers(model)[1].get_submodule("attention.self")
    attention.register_forward_hook(lambda module, args, output: given.append(output[0]))
    with ActivationRecorder(model, layers=(1,)) as recorder:
        model(**INPUTS)
        layer = recorder.take().layers[1]
    assert layer.query is not None
    assert layer.key is not None
    assert layer.value is not None
    weights = attention_probabilities(attention_scores(layer.query, layer.key, 4), MASK)
    values = layer.value.view(2, 9, 4, 6).transpose(1, 2)
    expected = (weights @ values).transpose(1, 2).reshape(2, 9, 24)
    torch.testing.assert_close(real(expected), real(given[0]), rtol=1e-4, atol=1e-5)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Gradient checkpointing, also of ALBERT, for which transformers has none."""
    if model.config.model_type != "albert":
        model.gradient_checkpointing_enable()
        return
    for layer in set(encoder_layers(model)):
        layer.forward = partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)


@checkpointed
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["albert", "albert of 2 groups", "bert", "deberta", "distilbert"])
def test_gradients_flow_through_a_tap(family: str, checkpointing: bool) -> None:
    def gradients(checkpointing: bool) -> list[Tensor | None]:
        model = make_model(family).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointing:
            checkpoint_layers(model)
        with ActivationRecorder(model, layers=(1,), hidden_states=(2,)) as recorder:
            logits = model(**INPUTS).start_logits
            recorded = recorder.take()
            layer = recorded.layers[1]
            assert layer.query is not None
            assert layer.key is not None
            loss = attention_scores(layer.query, layer.key, 4).square().mean()
            loss = loss + recorded.hidden_states[2].square().mean() + logits.square().mean()
            loss.backward()
        return [parameter.grad for parameter in encoder_layers(model)[1].parameters()]

    computed = gradients(checkpointing)
    assert all(gradient is not None and gradient.any() for gradient in computed)
    torch.testing.assert_close(computed, gradients(False))


@checkpointed
@pytest.mark.parametrize("family", ["albert", "bert"])
def test_layers_run_again_by_checkpointing_are_not_kept(family: str) -> None:
    model = make_model(family).train()
    checkpoint_layers(model)
    with (
        ActivationRecorder(model, layers=(1,)) as projections,
        ActivationRecorder(model, hidden_states=(0,)) as embeddings,
    ):
        loss = model(**INPUTS).start_logits.square().mean()
        projections.take()
        embeddings.take()
        loss.backward()
        for recorder in (projections, embeddings):
            with pytest.raises(RuntimeError, match="not finished a forward"):
                recorder.take()


@pytest.fixture
def one_process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
@pytest.mark.parametrize("recorder_first", [True, False])
def test_a_recorder_works_on_a_model_wrapped_in_ddp(recorder_first: bool) -> None:
    model = make_model("roberta")
    wrapped: nn.Module
    if recorder_first:
        recorder = ActivationRecorder(model, layers=(2,))
        wrapped = nn.parallel.DistributedDataParallel(model)
    else:
        wrapped = nn.parallel.DistributedDataParallel(model)
        recorder = ActivationRecorder(wrapped, layers=(2,))
    wrapped(**INPUTS)
    query = recorder.take().layers[2].query
    assert query is not None
    assert query.requires_grad
    assert len(encoder_layers(wrapped)) == 3


def test_the_last_forward_wins_and_is_given_once() -> None:
    model = make_model("bert")
    recorder = ActivationRecorder(model, hidden_states=(3,))
    with pytest.raises(RuntimeError, match="not finished a forward"):
        recorder.take()
    model(input_ids=TOKENS[:1])
    last = model(**INPUTS, output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(recorder.take().hidden_states[3], last)
    with pytest.raises(RuntimeError, match="not finished a forward"):
        recorder.take()


def test_a_closed_tap_leaves_no_hook() -> None:
    model = make_model("bert")
    with ActivationRecorder(model, layers=(0, 1, 2), hidden_states=(0, 3)):
        assert any(module._forward_hooks for module in model.modules())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_two_recorders_on_one_model_do_not_disturb_each_other() -> None:
    model = make_model("bert")
    with ActivationRecorder(model, layers=(0,)) as first, ActivationRecorder(model, layers=(2,)) as second:
        model(**INPUTS)
        assert list(first.take().layers) == [0]
        assert list(second.take().layers) == [2]


def test_scores_are_float32_under_autocast() -> None:
    query = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = attention_scores(query, query, 4)
    torch.testing.assert_close(scores, attention_scores(query, query, 4), rtol=0.0, atol=0.0)


def test_unsupported_family_is_refused_by_name() -> None:
    model = AutoModelForQuestionAnswering.from_config(RemBertConfig(**SIZES))
    with pytest.raises(InputError, match=r"type rembert; supported are albert, .*distilbert.*roberta"):
        encoder_layers(model)
    with pytest.raises(InputError, match="type Linear"):
        encoder_layers(nn.Linear(1, 1))


def test_albert_whose_groups_hold_several_layers_is_refused() -> None:
    model = AutoModelForQuestionAnswering.from_config(AlbertConfig(**SIZES, inner_group_num=2))
    with pytest.raises(InputError, match=r"inner_group_num is 2; .* where it is 1"):
        encoder_layers(model)


def test_layers_of_albert_are_told_apart_though_they_share_weights() -> None:
    model = make_model("albert")
    assert len(encoder_layers(model)) == 3
    assert len(set(encoder_layers(model))) == 1
    with ActivationRecorder(model, layers=(0, 1, 2), hidden_states=(0, 1, 2, 3)) as recorder:
        for _ in range(2):  # calls are counted anew in each forward
            model(**INPUTS)
            recorded = recorder.take()
    queries = [recorded.layers[index].query for index in range(3)]
    for first, second in ((0, 1), (1, 2)):
        assert queries[first] is not None
        assert not torch.allclose(queries[first], queries[second], atol=1e-2)
    for index, query in enumerate(queries):
        projected = encoder_layers(model)[0].get_submodule("attention.query")(recorded.hidden_states[index])
        torch.testing.assert_close(query, projected)


def test_what_a_model_does_not_have_is_refused() -> None:
    model = make_model("bert")
    with pytest.raises(InputError, match="no layer 3; the model has layers 0 to 2"):
        ActivationRecorder(model, layers=(1, 3))
    with pytest.raises(InputError, match="no hidden state -1; the model has hidden states 0 to 3"):
        ActivationRecorder(model, hidden_states=(-1,))
    with pytest.raises(InputError, match="cannot record scores; a layer has query, key, value"):
        ActivationRecorder(model, layers=(1,), what=("query", "scores"))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (MPNetConfig(**SIZES), ["mpnet adds a bias for relative positions to its attention scores"]),
        (DebertaV2Config(**SIZES, relative_attention=True), ["deberta-v2 adds products with relative"]),
        (DebertaConfig(**SIZES, relative_attention=True), ["deberta adds products with relative"]),
        (DebertaV2Config(**SIZES), []),
        (BertConfig(**SIZES), []),
    ],
    ids=["mpnet", "deberta-v2", "deberta", "deberta-v2 without relative positions", "bert"],
)
def test_positions_in_the_scores_are_announced_once(
    config: PretrainedConfig, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(layers._log, "warning", lambda message, *values: told.append(message % values))
    check_heads(config, config)
    assert len(told) == len(said)
    assert all(message.startswith(start) for message, start in zip(told, said, strict=True))
