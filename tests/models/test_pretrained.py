from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertConfig, BertModel, T5Config

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import families, pretrained
from tinyqa_ray.models.settings import FILE, ModelSettings, read_settings, write_settings


@pytest.fixture
def copy(tiny_bert: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


def test_saved_model_is_loaded_in_eval_mode_and_float32(tiny_bert: str) -> None:
    model = pretrained.load_qa_model(tiny_bert)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_are_those_of_the_file(tiny_roberta: str) -> None:
    expected = AutoModelForQuestionAnswering.from_pretrained(tiny_roberta).state_dict()
    loaded = pretrained.load_qa_model(tiny_roberta).state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_folder_behind_a_url_is_loaded(tiny_bert: str) -> None:
    for file in Path(tiny_bert).iterdir():
        storage.write_atomic(f"memory://url-model/{file.name}", file.read_bytes())
    assert pretrained.load_config("memory://url-model").model_type == "bert"
    assert len(pretrained.load_tokenizer("memory://url-model")) == len(pretrained.load_tokenizer(tiny_bert))
    expected = pretrained.load_qa_model(tiny_bert).state_dict()
    loaded = pretrained.load_qa_model("memory://url-model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "load", [pretrained.load_qa_model, pretrained.load_config, pretrained.load_tokenizer]
)
@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "~/no-such", "memory://no-such"])
def test_absent_folder_is_refused_by_name(load: Callable[[str], object], name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: no such model folder$"):
        load(name)


@pytest.mark.parametrize(
    "load", [pretrained.load_qa_model, pretrained.load_config, pretrained.load_tokenizer]
)
def test_hub_id_that_cannot_be_reached_is_refused_in_one_line(load: Callable[[str], object]) -> None:
    with pytest.raises(InputError, match=r"^nobody/nothing: no [^\n]* could be loaded \([^\n]*\)$"):
        load("nobody/nothing")


def test_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"copy: has no config\.json[^\n]*$"):
        pretrained.load_qa_model(str(copy))


@pytest.mark.parametrize("text", ["{", '{"model_type": "no-such-type"}', '{"model_type": "clip"}'])
def test_config_that_is_no_qa_model_is_refused_in_one_line(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    refused = r"copy: (no model could be loaded|is of the family clip, which has no)[^\n]*$"
    with pytest.raises(InputError, match=refused):
        pretrained.load_qa_model(str(copy))


def test_pickled_weights_are_refused_by_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    for load in (pretrained.load_qa_model, pretrained.input_embeddings):
        with pytest.raises(InputError, match=r"only pytorch_model\.bin; weights are read from safetensors"):
            load(str(copy))


def test_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(InputError, match="copy: holds no weights"):
        pretrained.load_qa_model(str(copy))


def test_cut_off_weights_are_refused_in_one_line(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:1000])
    for load in (pretrained.load_qa_model, pretrained.input_embeddings):
        with pytest.raises(InputError, match=r"copy: no [^\n]* could be loaded \([^\n]*\)$"):
            load(str(copy))


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(InputError, match="copy: no question-answering model could be loaded"):
        pretrained.load_qa_model(str(copy))


def test_missing_layer_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"lacks \d+ weights \(bert\.encoder\.layer\.2.*not whole"):
        pretrained.load_qa_model(str(copy))


def test_encoder_needs_leave_to_get_a_new_head(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no question-answering head \(qa_outputs\.bias, [^\n]*$"):
        pretrained.load_qa_model(str(tmp_path))
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(pretrained.load_qa_model(str(tmp_path), new_head=True).state_dict()["qa_outputs.weight"])
    assert torch.equal(*made)


def test_folder_without_tokenizer_is_refused(copy: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (copy / file).unlink()
    with pytest.raises(InputError, match="copy: has no tokenizer"):
        pretrained.load_tokenizer(str(copy))


@pytest.mark.parametrize("text", ["{", '{"version": "1.0"}'])
def test_broken_tokenizer_is_refused(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(InputError, match=r"copy: no tokenizer could be loaded[^\n]*$"):
        pretrained.load_tokenizer(str(copy))


def test_input_embeddings_are_those_of_the_model(tiny_bert: str) -> None:
    weight = pretrained.load_qa_model(tiny_bert).get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(pretrained.input_embeddings(tiny_bert), weight)


def test_roberta_reaches_fewer_tokens_than_its_positions(tiny_bert: str, tiny_roberta: str) -> None:
    assert families.max_window_tokens(pretrained.load_config(tiny_bert)) == 512
    roberta = pretrained.load_config(tiny_roberta)
    assert families.max_window_tokens(roberta) == 512
    model = pretrained.load_qa_model(tiny_roberta)
    model(input_ids=torch.full((1, 512), 5))
    with pytest.raises(Exception, match=r"index|size"):
        model(input_ids=torch.full((1, 513), 5))


def test_model_without_position_limit_takes_any_window() -> None:
    pretrained.check_window("m", T5Config(), 100_000)


def test_window_beyond_the_model_is_refused_with_both_lengths(tiny_bert: str) -> None:
    config = pretrained.load_config(tiny_bert)
    pretrained.check_window("m", config, 512)
    with pytest.raises(InputError, match="max_seq_len is 513, but m reads at most 512 tokens"):
        pretrained.check_window("m", config, 513)


def test_settings_round_trip_beside_a_model(copy: Path) -> None:
    assert read_settings(str(copy)) == ModelSettings()
    fitted = ModelSettings(no_answer_threshold=0.25, fitted_on="sha256 abc")
    write_settings(str(copy), fitted)
    assert read_settings(str(copy)) == fitted


@pytest.mark.parametrize("text", ["[]", '{"threshold": 0.5}'])
def test_settings_of_another_version_are_refused(copy: Path, text: str) -> None:
    (copy / FILE).write_text(text)
    with pytest.raises(InputError, match=r"tinyqa\.json: is not a settings file of this version"):
        read_settings(str(copy))


def test_settings_of_a_hub_id_are_defaults() -> None:
    assert read_settings("nobody/nothing") == ModelSettings()


def test_settings_that_are_named_come_before_those_beside_the_model(copy: Path, tmp_path: Path) -> None:
    write_settings(str(copy), ModelSettings(no_answer_threshold=0.25))
    write_settings(str(tmp_path / "evaluation"), ModelSettings(no_answer_threshold=0.75))
    for given in (tmp_path / "evaluation", tmp_path / "evaluation" / FILE):
        assert read_settings(str(copy), str(given)).no_answer_threshold == 0.75
    with pytest.raises(InputError, match="no such settings; give the --output of a tinyqa evaluate with"):
        read_settings(str(copy), str(tmp_path))


def test_model_bytes_are_those_of_the_weights(tiny_bert: str) -> None:
    assert pretrained.model_bytes(tiny_bert) == (Path(tiny_bert) / "model.safetensors").stat().st_size


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_tokenizer_without_tokenizer_json_is_made_of_its_vocabulary(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Some published models have a vocabulary only: vocab.txt, or vocab.json and merges.txt."""
    folder = Path(request.getfixturevalue(f"tiny_{family}"))
    whole = pretrained.load_tokenizer(str(folder))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    if family == "bert":
        words = sorted(model["vocab"], key=model["vocab"].__getitem__)
        (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    else:
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
        (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    made = pretrained.load_tokenizer(str(tmp_path))
    assert made.is_fast
    text = "Who built the lighthouse on Gull Point in 1871?"
    assert made(text)["input_ids"] == whole(text)["input_ids"]
