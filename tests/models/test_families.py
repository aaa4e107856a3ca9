from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models
import tiny
import torch
import transformers as hf
from tokenizers.processors import RobertaProcessing

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import families, pretrained, weights

LONG = small_models.SIZES
MODERNBERT: dict[str, Any] = {
    "pad_token_id": 0,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS: dict[str, hf.PretrainedConfig] = {
    "albert": hf.AlbertConfig(**LONG, embedding_size=16),
    "big_bird": hf.BigBirdConfig(**LONG, block_size=8, num_random_blocks=1),
    "convbert": hf.ConvBertConfig(**LONG, embedding_size=16),
    "data2vec-text": hf.Data2VecTextConfig(**LONG),
    "deberta": hf.DebertaConfig(**LONG, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "deberta-v2": hf.DebertaV2Config(**LONG, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "electra": hf.ElectraConfig(**LONG, embedding_size=16),
    "ernie": hf.ErnieConfig(**LONG),
    "fnet": hf.FNetConfig(**{k: v for k, v in LONG.items() if k != "num_attention_heads"}),
    "funnel": hf.FunnelConfig(vocab_size=400, block_sizes=[1, 1], d_model=16, n_head=2, d_head=8, d_inner=24),
    "modernbert": hf.ModernBertConfig(**LONG, **MODERNBERT),
    "mpnet": hf.MPNetConfig(**LONG),
    "rembert": hf.RemBertConfig(**LONG, input_embedding_size=16),
    "roberta-prelayernorm": hf.RobertaPreLayerNormConfig(**LONG),
    "roformer": hf.RoFormerConfig(**LONG, embedding_size=16),
    "splinter": hf.SplinterConfig(**LONG),
    "xlm-roberta-xl": hf.XLMRobertaXLConfig(**LONG),
}
every_family = pytest.mark.parametrize("family", CONFIGS)
WINDOW = WindowConfig(max_seq_len=64, doc_stride=16, max_query_len=16)
CONTEXT = tiny.squad_document()["data"][0]["paragraphs"][0]["context"]


def make(family: str, kind: Any = hf.AutoModelForQuestionAnswering) -> Any:
    """A model whose logits differ from token to token."""
    torch.manual_seed(5)
    model = kind.from_config(CONFIGS[family]).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def save(family: str, folder: Path, kind: Any = hf.AutoModelForQuestionAnswering) -> str:
    make(family, kind).save_pretrained(folder)
    tiny.wordpiece_tokenizer().save_pretrained(folder)
    return str(folder)


@every_family
def test_model_is_loaded_whole_and_an_encoder_alone_gets_a_head_where_one_is_wanted(
    family: str, tmp_path: Path
) -> None:
    whole, encoder = save(family, tmp_path / "whole"), save(family, tmp_path / "encoder", hf.AutoModel)
    loaded = pretrained.load_qa_model(whole).state_dict()
    assert all(torch.equal(tensor, loaded[key]) for key, tensor in make(family).state_dict().items())
    weights.check_qa_model(whole)
    for check in (pretrained.load_qa_model, weights.check_qa_model):
        with pytest.raises(InputError, match=r"encoder: has no question-answering head \([^\n]+ missing\)"):
            check(encoder)
        check(encoder, new_head=True)


@every_family
def test_answers_do_not_depend_on_what_a_window_is_batched_with(family: str) -> None:
    engine = TorchEngine(families.settle(make(family)), device="cpu")
    windower = Windower(tiny.wordpiece_tokenizer(), WINDOW)
    pairs = [("Who built it?", CONTEXT), ("When?", "In 1871."), ("Where did the owl live?", CONTEXT[:90])]
    together, _ = engine.logits(windower.windows(pairs))
    alone = [row for pair in pairs for row in engine.logits(windower.windows([pair]), 1)[0]]
    assert len({len(row) for row in together}) > 1
    for mine, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
    assert all(np.ptp(row) > 1e-3 for row in together), "logits that are all alike would show nothing"


@pytest.mark.parametrize(
    "family", [name for name in CONFIGS if name not in ("funnel", "modernbert", "roformer")]
)
def test_reach_is_the_longest_window_that_a_model_reads(family: str) -> None:
    model, reach = families.settle(make(family)), families.max_window_tokens(CONFIGS[family])
    ids = torch.full((1, reach + 1), 7)
    model(input_ids=ids[:, :reach])
    if family not in ("deberta", "deberta-v2"):  # their positions are relative, too
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)
    assert reach in (130, 128), "130 positions, less the padding id and those before it"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (hf.T5Config(), "family t5, which is an encoder with a decoder"),
        (hf.XLNetConfig(), "family xlnet, which puts its classification token last"),
        (hf.LxmertConfig(), "family lxmert, which reads pictures"),
        (hf.CLIPConfig(), "family clip, which has no question-answering class"),
        (hf.XLMConfig(architectures=["XLMForQuestionAnswering"]), "has a beam-search head"),
    ],
    ids=lambda each: each.model_type if isinstance(each, hf.PretrainedConfig) else "",
)
def test_what_cannot_be_read_is_refused_by_family_before_weights_are_loaded(
    config: hf.PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(InputError, match=reason):
        pretrained.load_qa_model(str(tmp_path))


def test_tokens_without_types_are_given_none() -> None:
    assert families.input_names(make("mpnet")) == ("input_ids", "attention_mask")
    assert families.input_names(make("fnet")) == ("input_ids", "token_type_ids")
    assert families.input_names(make("albert")) == ("input_ids", "attention_mask", "token_type_ids")
    assert not families.uses_types(make("deberta-v2"))


def test_tokenizer_that_expects_a_space_before_a_word_loses_no_letter() -> None:
    """RobBERT's post-processor trims a space that its pre-tokenizer did not add."""
    tokenizer = tiny.bytelevel_tokenizer()
    backend = tokenizer.backend_tokenizer
    ends = [(tokenizer.sep_token, tokenizer.sep_token_id), (tokenizer.cls_token, tokenizer.cls_token_id)]
    backend.post_processor = RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    (offsets,) = Windower(tokenizer, WINDOW).windows([("Who?", "fought the owl")]).offsets
    assert offsets[0, 0] == 0
    assert set("fought the owl") - {" "} == {c for a, b in offsets.tolist() for c in "fought the owl"[a:b]}


def test_special_token_typed_in_a_context_is_text(tiny_roberta: str) -> None:
    windows = Windower(pretrained.load_tokenizer(tiny_roberta), WINDOW).windows([("Who?", "the </s> owl")])
    ends = pretrained.load_tokenizer(tiny_roberta).sep_token_id
    assert (windows.input_ids[0] == ends).sum() == 3  # those of the template alone


def test_tokenizer_that_pads_on_the_left_is_refused(tiny_bert: str) -> None:
    tokenizer = pretrained.load_tokenizer(tiny_bert)
    tokenizer.padding_side = "left"
    with pytest.raises(InputError, match="pads on the left"):
        Windower(tokenizer, WINDOW)
