"""Exports to ONNX: the logits of torch, in files that other programs take as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from tinyqa_ray import pipeline
from tinyqa_ray.configs import ExportConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower, Windows
from tinyqa_ray.engines.engine import padded
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader import Reader

pytest.importorskip("onnx", reason="needs the extra cpu")
pytest.importorskip("onnxruntime", reason="needs the extra cpu")
pytest.importorskip("openvino", reason="needs the extra cpu")

import onnx
import onnxruntime

from tinyqa_ray.engines.onnx_engine import OnnxEngine
from tinyqa_ray.export import export
from tinyqa_ray.export.onnx_easing import FLOAT, ease
from tinyqa_ray.export.onnx_format import down_projections_onnx, quantise_onnx, write_onnx
from tinyqa_ray.export.report import Figures

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
SMALL = WindowConfig(max_seq_len=50, doc_stride=8, max_query_len=16)
FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta"])


def config(model: str, squad: str, **changes: object) -> ExportConfig:
    # Random weights answer nothing: their F1 says little about int8.
    plain = ExportConfig(
        model=model,
        format="onnx",
        calibration=squad,
        calibration_questions=8,
        max_f1_drop=100.0,
        window=SMALL,
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def int8(tiny_bert: str, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("export") / "int8")
    export(config(tiny_bert, tiny_squad), folder)
    return folder


@pytest.fixture(scope="module")
def fp32(tiny_bert: str, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("export") / "fp32")
    export(config(tiny_bert, tiny_squad, precision="fp32", calibration=None), folder)
    return folder


def some_windows(folder: str) -> Windows:
    windower = Windower(pretrained.load_tokenizer(folder), SMALL)
    return windower.windows([("Who built the lighthouse?", context) for context in [*CONTEXTS, "owl", ""]])


@FAMILIES
def test_onnx_file_gives_the_logits_of_torch(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    network = pretrained.load_qa_model(folder)
    windows = some_windows(folder)
    wanted = TorchEngine(network, device="cpu").logits(windows)
    write_onnx(network, tmp_path / "model.onnx")
    for threads, budget in ((1, 4096), (2, 120), (2, 1)):
        engine = OnnxEngine(tmp_path / "model.onnx", network.config, threads=threads)
        for one, two in zip(wanted, engine.logits(windows, budget), strict=True):
            for ours, theirs in zip(one, two, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_conversion_that_changes_logits_is_refused(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    monkeypatch.setattr("tinyqa_ray.export.onnx_format._largest_difference", lambda *_: float("nan"))
    with pytest.raises(InputError, match=r"does not convert to ONNX \(logits would differ by nan\)"):
        write_onnx(network, tmp_path / "model.onnx")


@pytest.mark.parametrize(("form", "file"), [("fp32", "model.onnx"), ("int8", "model_quantized.onnx")])
def test_folder_is_laid_out_as_other_programs_expect_it(
    form: str, file: str, request: pytest.FixtureRequest
) -> None:
    """Those are optimum and transformers.js."""
    folder = Path(request.getfixturevalue(form))
    assert [path.name for path in (folder / "onnx").iterdir()] == [file]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in folder.iterdir()}
    graph = onnx.load(str(folder / "onnx" / file)).graph
    assert [[dim.dim_param for dim in put.type.tensor_type.shape.dim] for put in graph.input] == [
        ["batch", "sequence"]
    ] * 3
    assert [output.name for output in graph.output] == ["start_logits", "end_logits"]
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}, "standard operators only"


@pytest.mark.parametrize(("form", "file"), [("fp32", "model.onnx"), ("int8", "model_quantized.onnx")])
def test_plain_onnx_runtime_gives_our_logits(form: str, file: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(form)
    made = AutoTokenizer.from_pretrained(folder)("Who built it?", CONTEXTS[0][:40], return_tensors="np")
    session = onnxruntime.InferenceSession(f"{folder}/onnx/{file}", providers=["CPUExecutionProvider"])
    start, _ = session.run(None, {name: values.astype(np.int64) for name, values in made.items()})
    reader = Reader.from_pretrained(folder, window=SMALL)
    windows = reader.windower.windows([("Who built it?", CONTEXTS[0][:40])])
    assert windows.input_ids[0].tolist() == made["input_ids"][0].tolist()
    (ours,), _ = reader.engine.logits(windows)
    np.testing.assert_allclose(start[0], ours, atol=1e-4)


def test_int8_reads_about_like_its_model(int8: str, tiny_bert: str) -> None:
    plain, small = (Reader.from_pretrained(model, window=SMALL) for model in (tiny_bert, int8))
    assert small.engine.name.startswith("ONNX Runtime int8 on ")
    assert small.engine.parameters == plain.engine.parameters
    asked = [("Who?", context) for context in CONTEXTS]
    one, two = (np.array([r.null_score for r in reader.read(asked)]) for reader in (plain, small))
    assert not np.array_equal(one, two)
    assert np.abs(one - two).max() < 0.25 * np.abs(one).max()


def test_int8_logits_of_a_window_do_not_change_with_its_neighbours(int8: str) -> None:
    """In the server, these are windows of other callers."""
    engine = Reader.from_pretrained(int8, window=SMALL).engine
    windows = some_windows(int8)
    everything = np.arange(len(windows))
    ((_, starts, ends),) = engine.run(windows, [everything])
    assert starts.shape == ends.shape == (len(windows), windows.lengths.max())
    for window in everything:
        tokens = windows.lengths[window]
        ((_, start, end),) = engine.run(windows, [np.array([window])])
        assert starts[window, :tokens].tolist() == start[0].tolist()
        assert ends[window, :tokens].tolist() == end[0].tolist()


def test_int8_weights_take_seven_bits(int8: str) -> None:
    """As in OpenVINO's exports: sums of two products must stay below 2**15 without VNNI."""
    graph = onnx.load(f"{int8}/onnx/model_quantized.onnx").graph
    arrays = [onnx.numpy_helper.to_array(each) for each in graph.initializer]
    matrices = [array for array in arrays if array.dtype == np.int8 and array.ndim == 2]
    assert len(matrices) == 2 * 6 + 1
    assert max(np.abs(matrix.astype(int)).max() for matrix in matrices) <= 64


def test_fusion_that_is_slower_on_cpus_is_left_out(
    int8: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, fused = onnxruntime.InferenceSession, str(tmp_path / "fused.onnx")
    file, written = str(Path(int8) / "onnx" / "model_quantized.onnx"), str(tmp_path / "ours.onnx")

    def watched(file: str, options: Any, **others: Any) -> Any:
        options.optimized_model_filepath = written
        return session(file, options, **others)

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = fused
    options.log_severity_level = 3  # it warns that such files are for one kind of machine
    session(file, options, providers=["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    OnnxEngine(file, pretrained.load_config(int8))
    plain, ours = ({node.op_type for node in onnx.load(each).graph.node} for each in (fused, written))
    assert "SkipLayerNormalization" in plain
    assert "SkipLayerNormalization" not in ours
    assert {"LayerNormalization", "DynamicQuantizeMatMul"} <= ours, "other fusions stay"


def test_int8_with_weights_of_eight_bits_is_refused_where_it_would_read_wrong(
    int8: str, tmp_path: Path, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(int8, tmp_path / "other"))
    model = onnx.load(str(other / "onnx/model_quantized.onnx"))
    onnx.helper.set_model_props(model, {"tinyqa_precision": "int8"})
    onnx.save(model, str(other / "onnx/model_quantized.onnx"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    has("avx2", "vnni")
    Reader.from_pretrained(str(other))
    has("avx2")
    Reader.from_pretrained(int8)
    with pytest.raises(InputError, match=r"without VNNI, computes wrongly; export the model again"):
        Reader.from_pretrained(str(other))


def test_products_that_lose_most_stay_in_float_where_the_first_trial_fails(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([80.0, 70.0, 79.8])
    monkeypatch.setattr(
        "tinyqa_ray.export.work._figures",
        lambda *_: Figures(f1=next(figures), forced_f1=85.0, questions_per_s=1.0),
    )
    report = export(config(tiny_bert, tiny_squad, max_f1_drop=0.5), str(tmp_path / "out"))
    assert (report.format, report.float_products) == ("onnx", "attention maps, ffn outputs")
    graph = onnx.load(str(tmp_path / "out/onnx/model_quantized.onnx")).graph
    kept = [node.name for node in graph.node if node.op_type == "MatMul" and "output/dense" in node.name]
    assert len(kept) == 2, "one a layer"


@FAMILIES
def test_feed_forward_outputs_are_found_in_every_layer(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    network = pretrained.load_qa_model(request.getfixturevalue(f"tiny_{family}"))
    write_onnx(network, tmp_path / "model.onnx")
    names = down_projections_onnx(tmp_path / "model.onnx", network.config)
    assert len(names) == network.config.num_hidden_layers
    assert all("output" in name and "attention" not in name for name in names)


def test_pipeline_takes_an_onnx_folder(fp32: str, tiny_bert: str) -> None:
    asked = {"question": "Who?", "context": CONTEXTS[0]}
    ours, theirs = (pipeline("question-answering", model)(asked) for model in (fp32, tiny_bert))
    assert (ours["start"], ours["end"]) == (theirs["start"], theirs["end"])


def test_folder_of_both_precisions_is_read_in_the_one_asked_for(fp32: str, int8: str, tmp_path: Path) -> None:
    both = Path(shutil.copytree(int8, tmp_path / "both"))
    shutil.copy(f"{fp32}/onnx/model.onnx", both / "onnx")
    for precision, found in (("auto", "int8"), ("int8", "int8"), ("fp32", "fp32")):
        assert found in Reader.from_pretrained(str(both), precision=precision).engine.name
    with pytest.raises(InputError, match="is exported to int8 and fp32, but precision is 'bf16'"):
        Reader.from_pretrained(str(both), precision="bf16")


def test_model_with_onnx_files_beside_its_weights_stays_a_torch_model(
    fp32: str, tiny_bert: str, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    shutil.copytree(f"{fp32}/onnx", model / "onnx")
    assert Reader.from_pretrained(str(model)).engine.name.startswith("torch")


def test_broken_or_foreign_file_is_refused_in_one_line(fp32: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(fp32, tmp_path / "broken"))
    whole = (broken / "onnx/model.onnx").read_bytes()
    (broken / "onnx/model.onnx").write_bytes(whole[:1000])
    with pytest.raises(InputError, match=r"onnx/model\.onnx: ONNX Runtime cannot read it [^\n]*$"):
        Reader.from_pretrained(str(broken))
    model = onnx.load_from_string(whole)
    del model.metadata_props[:]
    onnx.save(model, str(broken / "onnx/model.onnx"))
    with pytest.raises(InputError, match=r"was not written by tinyqa export"):
        Reader.from_pretrained(str(broken))


def test_weights_of_eight_bits_have_twice_as_many_steps(tiny_bert: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain.onnx"
    write_onnx(pretrained.load_qa_model(tiny_bert), plain)
    feeds = [{"input_ids": np.arange(1, 17)[None], "attention_mask": np.ones((1, 16), np.int64)}]
    feeds = [{**each, "token_type_ids": np.zeros((1, 16), np.int64)} for each in feeds]
    for seen in ([], feeds):
        quantise_onnx(plain, tmp_path / "int8.onnx", [], seen, weight_bits=8)
        model = onnx.load(str(tmp_path / "int8.onnx"))
        assert {each.key: each.value for each in model.metadata_props}["tinyqa_weight_bits"] == "8"
        arrays = [onnx.numpy_helper.to_array(each) for each in model.graph.initializer]
        whole = [each for each in arrays if each.dtype == np.int8 and each.ndim == 2]
        assert max(np.abs(each.astype(int)).max() for each in whole) == 127


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_of_eight_bits_are_those_of_int8(precision: Any) -> None:
    with pytest.raises(InputError, match="only int8 has such weights"):
        ExportConfig(model="m", precision=precision, weight_bits=8)


def test_bf16_is_refused() -> None:
    with pytest.raises(InputError, match="ONNX Runtime has none on CPUs; use fp32 or int8"):
        ExportConfig(format="onnx", precision="bf16")


def test_export_of_an_earlier_version_is_still_the_one_of_its_folder(
    tiny_bert: str, tiny_squad: str, tmp_path: Path
) -> None:
    """It did not write down a format, which was OpenVINO."""
    folder = str(tmp_path / "out")
    plain = config(tiny_bert, tiny_squad, format=None, precision="fp32", calibration=None)
    export(plain, folder)
    success = Path(folder) / "_SUCCESS.json"
    document = json.loads(success.read_text())
    del document["config"]["format"], document["report"]["format"]
    success.write_text(json.dumps(document))
    assert export(plain, folder).format == "openvino"
    with pytest.raises(InputError, match=r"format None there, 'onnx' here"):
        export(replace(plain, format="onnx"), folder)


@pytest.mark.slow
def test_onnx_folder_at_a_url_is_read(fp32: str, bucket: str) -> None:
    from tinyqa_ray.core import storage

    for file in (path for path in Path(fp32).rglob("*") if path.is_file()):
        storage.write_atomic(f"{bucket}/onnx-model/{file.relative_to(fp32)}", file.read_bytes())
    reader = Reader.from_pretrained(f"{bucket}/onnx-model", window=SMALL)
    assert reader.engine.name.startswith("ONNX Runtime fp32")


@pytest.mark.parametrize(("size", "is_massive"), [(20.0, True), (2.5, False)])
def test_easing_keeps_what_the_file_computes_in_float(
    size: float, is_massive: bool, tiny_bert: str, tmp_path: Path
) -> None:
    """Some products get factors or a channel in float; logits stay, and integers stand for the weights."""
    network = pretrained.load_qa_model(tiny_bert)
    with torch.no_grad():
        for name, each in network.named_parameters():
            if "LayerNorm.weight" in name:
                each[3] = size  # an input of the next products that is larger than the others
    write_onnx(network, tmp_path / "plain.onnx")
    windows = some_windows(tiny_bert)
    feeds = []
    for window in range(len(windows)):
        ids, mask, types = padded(windows, np.array([window]), 0)
        feeds.append({"input_ids": ids, "attention_mask": mask, "token_type_ids": types})
    model = onnx.load(str(tmp_path / "plain.onnx"))
    kept = down_projections_onnx(tmp_path / "plain.onnx", network.config)
    integers = ease(model, feeds, kept, 64)
    assert len(integers) == 2 * 5 + 1, "all but those that stay in float"
    assert [node.name for node in model.graph.node if node.name.endswith("_eased/Mul")]
    assert (
        any(node.op_type == "Gather" and "_massive" in node.name for node in model.graph.node) == is_massive
    )
    onnx.save(model, str(tmp_path / "eased.onnx"))
    plain, eased = (
        OnnxEngine(tmp_path / f"{name}.onnx", network.config).logits(windows) for name in ("plain", "eased")
    )
    for one, two in zip(plain[0] + plain[1], eased[0] + eased[1], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)
    quantise_onnx(tmp_path / "plain.onnx", tmp_path / "int8.onnx", kept, feeds)
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    in_float = [node.name for node in graph.node if node.op_type == "MatMul" and node.name.endswith(FLOAT)]
    assert bool(in_float) == is_massive
    arrays = {each.name: each for each in graph.initializer}
    for name, whole in integers.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(arrays[f"{name}_quantized"]), whole)
