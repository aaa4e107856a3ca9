from __future__ import annotations

import shutil
from pathlib import Path

import hub_server
import pytest
import torch
from safetensors.torch import load_file

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.convert import convert


@pytest.fixture
def pickled(tiny_bert: str, tmp_path: Path) -> Path:
    """A model with pickled weights only, two of them sharing memory."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "pickled"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weights["tied"] = weights["qa_outputs.weight"].T
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "optimizer.pt").write_text("left")
    return folder


def test_converted_model_is_the_same_model(pickled: Path, tiny_bert: str, tmp_path: Path) -> None:
    output = tmp_path / "converted"
    report = convert(str(pickled), str(output))
    loaded = pretrained.load_qa_model(str(output)).state_dict()
    expected = pretrained.load_qa_model(tiny_bert).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert pretrained.load_tokenizer(str(output)).get_vocab() == (
        pretrained.load_tokenizer(tiny_bert).get_vocab()
    )
    others = {path.name for path in pickled.iterdir()} - {"pytorch_model.bin", "optimizer.pt"}
    assert {path.name for path in output.iterdir()} == others | {"model.safetensors"}
    assert report.bytes == (output / "model.safetensors").stat().st_size


def test_weights_in_several_files_are_put_together(pickled: Path, tiny_bert: str, tmp_path: Path) -> None:
    weights = list(torch.load(pickled / "pytorch_model.bin", weights_only=True).items())
    (pickled / "pytorch_model.bin").unlink()
    for number, part in enumerate((weights[:5], weights[5:]), start=1):
        torch.save(dict(part), pickled / f"pytorch_model-0000{number}-of-00002.bin")
    (pickled / "pytorch_model.bin.index.json").write_text("{}")
    convert(str(pickled), str(tmp_path / "converted"))
    loaded = pretrained.load_qa_model(str(tmp_path / "converted")).state_dict()
    expected = pretrained.load_qa_model(tiny_bert).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert not (tmp_path / "converted" / "pytorch_model.bin.index.json").exists()


class Runs:
    """Would write a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


def test_pickle_that_could_run_code_is_not_loaded(pickled: Path, tmp_path: Path) -> None:
    torch.save({"weight": Runs(tmp_path / "ran")}, pickled / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"pickled: pytorch_model\.bin is broken, or holds more than [^\n]*$"
    ):
        convert(str(pickled), str(tmp_path / "converted"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "converted").exists()


def test_file_that_is_not_whole_is_refused_in_one_line(pickled: Path, tmp_path: Path) -> None:
    whole = (pickled / "pytorch_model.bin").read_bytes()
    for left in (0, 10, 1000, len(whole) - 100):
        (pickled / "pytorch_model.bin").write_bytes(whole[:left])
        with pytest.raises(
            InputError, match=r"pickled: pytorch_model\.bin (is broken|cannot be read)[^\n]*$"
        ):
            convert(str(pickled), str(tmp_path / "converted"))


@pytest.mark.parametrize("held", [[torch.ones(2)], {"step": 3}, {"model": {"weight": torch.ones(2)}}])
def test_pickle_of_something_else_is_refused(pickled: Path, held: object, tmp_path: Path) -> None:
    torch.save(held, pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin does not hold weights by name"):
        convert(str(pickled), str(tmp_path / "converted"))


def test_what_needs_no_conversion_is_refused(tiny_bert: str, pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has safetensors already; use it as it is"):
        convert(tiny_bert, str(tmp_path / "converted"))
    (pickled / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no pytorch_model\.bin"):
        convert(str(pickled), str(tmp_path / "converted"))
    (pickled / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        convert(str(pickled), str(tmp_path / "converted"))


def test_output_that_holds_something_is_left_alone(pickled: Path, tmp_path: Path) -> None:
    for output in (pickled, pickled / "config.json"):
        with pytest.raises(InputError, match=r"holds something already; give --output a folder"):
            convert(str(pickled), str(output))


def test_hub_id_is_converted_and_then_read(pickled: Path, tiny_bert: str, tmp_path: Path) -> None:
    words = ("-m", "tinyqa_ray", "convert", "--output", str(tmp_path / "converted"), "--model")
    with hub_server.hub() as hub:
        hub.add("tester/pickled", pickled)
        hub.add("tester/safe", tiny_bert)
        done = hub.run(tmp_path / "home", *words, "tester/pickled")
        assert done.returncode == 0, done.stderr
        for name, said in (("safe", "has safetensors already"), ("absent", "the hub has no such model")):
            done = hub.run(tmp_path / "home", *words[:-2], str(tmp_path / name), "--model", f"tester/{name}")
            assert done.returncode == 2
            assert done.stderr.startswith(f"tinyqa: tester/{name}: ")
            assert said in done.stderr
            assert done.stderr.count("\n") == 1
    assert pretrained.load_qa_model(str(tmp_path / "converted")).config.model_type == "bert"
    assert not any(request.endswith("optimizer.pt") for request in hub.requests)
