from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from tinyqa_ray.configs import ExportConfig, WindowConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.export import export
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, read_settings, write_settings
from tinyqa_ray.reader import Reader

CONTEXT = tiny.squad_document()["data"][0]["paragraphs"][0]["context"]
SMALL = WindowConfig(max_seq_len=50, doc_stride=8, max_query_len=16)


def weights_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def stored(model: str, output: Path, precision: str = "fp16", **changes: object) -> Path:
    export(
        ExportConfig(model=model, precision=precision, format="safetensors", window=SMALL, **changes),  # type: ignore[arg-type]
        str(output),
    )
    return output


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_take_half_the_room_and_answer_about_the_same(
    tiny_bert: str, tmp_path: Path, precision: str
) -> None:
    half = stored(tiny_bert, tmp_path / "half", precision)
    whole = stored(tiny_bert, tmp_path / "whole", "fp32")
    # The header with names and places is not halved.
    assert weights_of(half) < 0.6 * weights_of(whole)
    for one, two in zip(
        pretrained.load_qa_model(tiny_bert).parameters(),
        pretrained.load_qa_model(str(half)).parameters(),
        strict=True,
    ):
        assert two.dtype == torch.float32
        torch.testing.assert_close(one, two, rtol=2**-8, atol=1e-6)


def test_stored_weights_are_a_model_of_transformers_with_its_settings(tiny_bert: str, tmp_path: Path) -> None:
    model = str(shutil.copytree(tiny_bert, tmp_path / "model"))
    write_settings(model, ModelSettings(no_answer_threshold=0.25, temperature=2.0))
    half = stored(model, tmp_path / "half")
    shutil.rmtree(model)
    assert AutoModelForQuestionAnswering.from_pretrained(half, dtype="auto").dtype == torch.float16
    assert AutoTokenizer.from_pretrained(half)("Who?")["input_ids"]
    assert read_settings(str(half)).no_answer_threshold == 0.25
    answer = Reader.from_pretrained(str(half)).answer("Who?", CONTEXT, threshold=1.0)[0]
    assert answer.answer == CONTEXT[answer.start : answer.end]


@pytest.mark.parametrize("place", ["folder", "url"])
def test_stored_weights_keep_the_card_of_their_model(tiny_bert: str, tmp_path: Path, place: str) -> None:
    model = str(tmp_path / "model") if place == "folder" else f"memory://{uuid.uuid4().hex}/model"
    for file in Path(tiny_bert).iterdir():
        storage.write_atomic(f"{model}/{file.name}", file.read_bytes())
    storage.write_atomic(f"{model}/README.md", "# Student of Bücher\n".encode())
    half = stored(model, tmp_path / "half")
    assert (half / "README.md").read_text(encoding="utf-8") == "# Student of Bücher\n"
    mean = stored(model, tmp_path / "mean", soup_with=(tiny_bert,))
    assert not (mean / "README.md").exists(), "the figures of one model are not those of a mean"


def test_loss_of_f1_is_measured_on_the_stored_weights(
    tiny_bert: str, tiny_squad: str, tmp_path: Path
) -> None:
    report = export(
        ExportConfig(
            model=tiny_bert, precision="fp16", format="safetensors", window=SMALL, calibration=tiny_squad
        ),
        str(tmp_path / "half"),
    )
    assert report.format == "safetensors"
    assert report.questions > 0
    assert report.model.f1 == pytest.approx(report.export.f1, abs=0.5)


def test_weight_that_fp16_cannot_hold_is_named(tiny_bert: str, tmp_path: Path) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    network.qa_outputs.bias.data[0] = 1e6
    network.save_pretrained(tmp_path / "large")
    pretrained.load_tokenizer(tiny_bert).save_pretrained(tmp_path / "large")
    with pytest.raises(InputError, match=r"qa_outputs\.bias has values that fp16 cannot hold; use bf16"):
        stored(str(tmp_path / "large"), tmp_path / "half")


@pytest.mark.parametrize(
    ("form", "precision", "complaint"),
    [
        ("safetensors", "int8", "weights are stored in fp32, bf16 or fp16"),
        ("onnx", "fp16", "ONNX Runtime has none on CPUs"),
        ("openvino", "fp16", "format 'safetensors'"),
        (None, "fp16", "format 'safetensors'"),
    ],
)
def test_precision_that_a_format_has_not_is_refused(form: str | None, precision: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        ExportConfig(model="m", format=form, precision=precision)  # type: ignore[arg-type]


def test_mean_of_several_models_is_stored(tiny_bert: str, tmp_path: Path) -> None:
    other = pretrained.load_qa_model(tiny_bert)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    shutil.copytree(tiny_bert, tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    mean = stored(tiny_bert, tmp_path / "mean", "fp32", soup_with=(str(tmp_path / "other"),))
    for one, two in zip(
        pretrained.load_qa_model(tiny_bert).parameters(),
        pretrained.load_qa_model(str(mean)).parameters(),
        strict=True,
    ):
        torch.testing.assert_close(two, one + 0.5)
