from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import pytest
import tiny
from transformers import AutoModel

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained, weights


@pytest.fixture
def copy(tiny_bert: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


@pytest.fixture
def bare(tiny_bert: str, tmp_path: Path) -> str:
    """The encoder alone."""
    AutoModel.from_pretrained(tiny_bert).save_pretrained(tmp_path / "bare")
    return str(tmp_path / "bare")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_whole_model_is_accepted_without_being_loaded(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    wanted = sum(parameter.numel() for parameter in pretrained.load_qa_model(folder).parameters())
    monkeypatch.setattr(pretrained, "load_qa_model", None)
    weights.check_qa_model(folder)
    assert weights.count_parameters(folder) == wanted


def test_encoder_is_accepted_where_it_may_get_a_new_head(bare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"has no question-answering head \(qa_outputs\.bias, [^\n]*$"):
        weights.check_qa_model(bare)
    monkeypatch.setattr(pretrained, "load_qa_model", None)
    weights.check_qa_model(bare, new_head=True)


def test_what_is_not_whole_is_refused_as_loading_refuses_it(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    for new_head in (False, True):
        with pytest.raises(InputError, match=r"lacks \d+ weights \(bert\.encoder\.layer\.2.*not whole"):
            weights.check_qa_model(str(copy), new_head=new_head)


def test_cut_off_file_is_refused(copy: Path) -> None:
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"copy: no [^\n]* could be loaded \([^\n]*\)$"):
        weights.check_qa_model(str(copy))


def test_pickled_weights_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pytorch_model\.bin; weights are read from safetensors"):
        weights.check_qa_model(str(copy))


def test_models_of_one_shape_are_known_by_their_headers(tiny_bert: str, bare: str, tmp_path: Path) -> None:
    like = tiny.save_qa_model(tmp_path / "like", seed=7)
    deep = tiny.save_qa_model(tmp_path / "deep", layers=3)
    assert weights.have_one_shape(tiny_bert, [like, like])
    assert not weights.have_one_shape(tiny_bert, [like, deep])
    assert not weights.have_one_shape(tiny_bert, [bare])
    assert not weights.have_one_shape(tiny_bert, ["somebody/some-model"])


def test_model_behind_a_url_is_fetched_once_a_process(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{uuid.uuid4().hex}/model"
    for file in Path(tiny_bert).iterdir():
        storage.write_atomic(storage.join(url, file.name), file.read_bytes())
    fetched = []
    download = pretrained.local_copies._download

    def noted(file: str, copy: Path) -> None:
        fetched.append(file)
        download(file, copy)

    monkeypatch.setattr(pretrained.local_copies, "_download", noted)
    weights.check_qa_model(url)
    pretrained.load_tokenizer(url)
    pretrained.load_qa_model(url)
    assert sorted(fetched) == storage.list_files(url)
