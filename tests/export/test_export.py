from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from tinyqa_ray import pipeline
from tinyqa_ray.configs import ExportConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower, Windows
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, read_settings, write_settings
from tinyqa_ray.reader import Reader

pytest.importorskip("openvino", reason="needs the extra cpu")
pytest.importorskip("nncf", reason="needs the extra cpu")

from tinyqa_ray.engines.openvino import OpenVinoEngine
from tinyqa_ray.export import ExportReport, export
from tinyqa_ray.export.quantise import converted, down_projections, quantised
from tinyqa_ray.export.report import Figures

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
SMALL = WindowConfig(max_seq_len=50, doc_stride=8, max_query_len=16)
FAMILIES = pytest.mark.parametrize("family", ["bert", "roberta"])


def config(model: str, squad: str, **changes: object) -> ExportConfig:
    # Random weights answer nothing: their F1 says little about int8.
    plain = ExportConfig(
        model=model, calibration=squad, calibration_questions=8, max_f1_drop=100.0, window=SMALL
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def exported(tiny_bert: str, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("export") / "int8")
    export(config(tiny_bert, tiny_squad), folder)
    return folder


def some_windows(folder: str) -> Windows:
    windower = Windower(pretrained.load_tokenizer(folder), SMALL)
    contexts = [*CONTEXTS, "owl", ""]
    return windower.windows([("Who built the lighthouse?", context) for context in contexts])


@FAMILIES
def test_converted_model_gives_the_logits_of_torch(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    network = pretrained.load_qa_model(folder)
    windows = some_windows(folder)
    wanted = TorchEngine(network, device="cpu").logits(windows)
    for threads, budget in ((1, 4096), (2, 120), (2, 1)):
        found = OpenVinoEngine(converted(network, "fp32"), network.config, threads=threads).logits(
            windows, budget
        )
        for one, two in zip(wanted, found, strict=True):
            for ours, theirs in zip(one, two, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_length_is_not_rounded_beyond_what_the_model_reaches(tiny_bert: str) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    table = network.bert.embeddings.position_embeddings.weight
    table.data = table.data[:50].clone()
    network.config.max_position_embeddings = 50
    windows = some_windows(tiny_bert)
    assert windows.lengths.max() == 50
    wanted, _ = TorchEngine(network, device="cpu").logits(windows)
    found, _ = OpenVinoEngine(converted(network, "fp32"), network.config).logits(windows)
    np.testing.assert_allclose(np.concatenate(wanted), np.concatenate(found), atol=1e-4)


def test_engines_of_two_processes_do_not_take_the_same_core(tiny_bert: str) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    engine = OpenVinoEngine(converted(network, "fp32"), network.config, threads=1)
    assert engine._compiled.get_property("ENABLE_CPU_PINNING") is False


def test_run_that_is_left_early_leaves_the_engine_usable(tiny_bert: str) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    engine = OpenVinoEngine(converted(network, "fp32"), network.config, threads=2)
    windows = some_windows(tiny_bert)
    wanted, _ = engine.logits(windows)
    for _ in engine.run(windows, [np.array([i]) for i in range(len(windows))]):
        break
    found, _ = engine.logits(windows)
    np.testing.assert_array_equal(np.concatenate(wanted), np.concatenate(found))


@FAMILIES
def test_int8_export_reads_about_like_its_model(
    family: str, request: pytest.FixtureRequest, tiny_squad: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    report = export(config(folder, tiny_squad), str(tmp_path / "int8"))
    assert report.precision == "int8"
    assert report.questions == 16
    plain = Reader.from_pretrained(folder, window=SMALL, device="cpu")
    small = Reader.from_pretrained(str(tmp_path / "int8"), window=SMALL)
    assert "int8" in small.engine.name
    asked = [("Who?", context) for context in CONTEXTS]
    one, two = (np.array([r.null_score for r in reader.read(asked)]) for reader in (plain, small))
    assert not np.array_equal(one, two)
    assert np.abs(one - two).max() < 0.25 * np.abs(one).max()


def test_int8_weights_take_seven_bits(exported: str) -> None:
    """Two products of a byte and such a weight add up to at most 2 x 255 x 64 = 32,640, below 2**15."""
    import openvino

    model = openvino.Core().read_model(Path(exported) / "openvino_model.xml")
    constants = [
        op for op in model.get_ops() if op.get_type_name() == "Constant" and op.data.dtype == np.int8
    ]
    matrices = [op.data for op in constants if "MatMul" in users(op, steps=3)]
    assert matrices, "they are kept as bytes"
    assert max(np.abs(matrix.astype(int)).max() for matrix in matrices) <= 64


def test_int8_weights_of_eight_bits_have_twice_as_many_steps(tiny_bert: str) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    made = converted(network, "int8")
    names = [port.get_any_name() for port in made.inputs]
    samples = [{name: np.ones((1, 16), np.int64) for name in names}]
    for bits, most in ((7, 64), (8, 127)):
        model = quantised(made, samples, [], weight_bits=bits)
        assert model.get_rt_info("tinyqa_weight_bits").astype(str) == str(bits)
        constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
        whole = [op.data for op in constants if op.data.dtype == np.int8 and "MatMul" in users(op, steps=3)]
        assert most // 2 < max(np.abs(each.astype(int)).max() for each in whole) <= most + 1


def test_weights_of_eight_bits_are_not_made_where_they_would_be_read_wrong(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    has("avx2")
    asked = replace(config(tiny_bert, tiny_squad), weight_bits=8)
    with pytest.raises(InputError, match=r"weight_bits is 8, with which this processor, without VNNI"):
        export(asked, str(tmp_path / "int8"))


@pytest.mark.parametrize(
    ("features", "format", "said"),
    [
        (("avx2",), None, True),
        (("avx2",), "onnx", False),
        (("avx2", "avx512", "vnni"), None, False),
    ],
)
def test_int8_that_is_slower_here_than_fp32_is_made_with_a_word_about_the_faster_one(
    features: tuple[str, ...],
    format: Any,
    said: bool,
    tiny_bert: str,
    tiny_squad: str,
    tmp_path: Path,
    has: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    has(*features)
    export(replace(config(tiny_bert, tiny_squad), format=format), str(tmp_path / "int8"))
    assert ("use --format onnx" in caplog.text) is said


def users(op: Any, steps: int) -> set[str]:
    """Types of the operations that a constant reaches in so many steps: it is converted, scaled and used."""
    found = {op.get_type_name()}
    if steps:
        for each in op.output(0).get_target_inputs():
            found |= users(each.get_node(), steps - 1)
    return found


AS_WITHOUT_VNNI = {"DNNL_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "avx2"}
"""Limits oneDNN's and OpenVINO's instructions, of x86, in the processes that have it in their environment."""


def test_export_reads_the_same_on_a_processor_without_vnni(exported: str, tiny_bert: str) -> None:
    reading = (
        "import sys; from tinyqa_ray.reader import Reader; from tinyqa_ray.configs import WindowConfig; "
        f"window = WindowConfig(**{asdict(SMALL)}); "
        "reader = Reader.from_pretrained(sys.argv[1], window=window); "
        f"print([r.null_score for r in reader.read([('Who?', context) for context in {CONTEXTS!r}])])"
    )
    command = [sys.executable, "-c", reading, exported]
    done = subprocess.run(
        command, env={**os.environ, **AS_WITHOUT_VNNI}, capture_output=True, text=True, check=True
    )
    there = np.array(json.loads(done.stdout.splitlines()[-1]))
    asked = [("Who?", context) for context in CONTEXTS]
    exact, here = (
        np.array([r.null_score for r in Reader.from_pretrained(model, window=SMALL).read(asked)])
        for model in (tiny_bert, exported)
    )
    assert np.abs(there - exact).max() < 0.25 * np.abs(exact).max()
    # bf16 around the matrices, where the processor has it, is what is left of a difference.
    assert np.abs(there - here).max() < 0.1 * np.abs(exact).max()


def test_export_with_weights_of_eight_bits_is_refused_where_it_would_read_wrong(
    exported: str, tmp_path: Path, has: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = Path(shutil.copytree(exported, tmp_path / "older"))
    text = (older / "openvino_model.xml").read_text()
    (older / "openvino_model.xml").write_text(text.replace("tinyqa_weight_bits", "other"))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    has("avx2", "vnni")
    Reader.from_pretrained(str(older))
    has("avx2")
    Reader.from_pretrained(exported)
    with pytest.raises(InputError, match=r"without VNNI, computes wrongly; export the model again"):
        Reader.from_pretrained(str(older))


def test_bf16_export_says_when_it_is_computed_in_fp32(tiny_bert: str, has: Callable[..., None]) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    has("avx2")
    engine = OpenVinoEngine(converted(network, "bf16"), network.config, threads=1)
    assert engine.name == "OpenVINO fp32 (the export is bf16) on 1 CPU threads"


def test_export_takes_tokenizer_and_settings_along(tiny_bert: str, tiny_squad: str, tmp_path: Path) -> None:
    model = str(shutil.copytree(tiny_bert, tmp_path / "model"))
    write_settings(model, ModelSettings(no_answer_threshold=0.25, temperature=2.0))
    export(config(model, tiny_squad, precision="fp32", calibration=None), str(tmp_path / "out"))
    shutil.rmtree(model)
    reader = Reader.from_pretrained(str(tmp_path / "out"))
    assert (reader.settings.no_answer_threshold, reader.settings.temperature) == (0.25, 2.0)
    answer = reader.answer("Who?", CONTEXTS[0], threshold=1.0)[0]
    assert answer.answer == CONTEXTS[0][answer.start : answer.end]


def test_export_takes_along_what_an_evaluation_fitted(
    tiny_bert: str, tiny_squad: str, tmp_path: Path
) -> None:
    fitted = ModelSettings(no_answer_threshold=0.75, temperature=3.0)
    write_settings(str(tmp_path / "evaluation"), fitted)
    plain = config(tiny_bert, tiny_squad, precision="fp32", calibration=None)
    export(replace(plain, settings=str(tmp_path / "evaluation")), str(tmp_path / "out"))
    assert read_settings(str(tmp_path / "out")) == fitted
    with pytest.raises(InputError, match=r"content of settings 'threshold 0\.75, .*' there, 'threshold 0\.5"):
        export(plain, str(tmp_path / "out"))


def test_finished_export_is_not_made_again(
    exported: str, tiny_bert: str, tiny_squad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyqa_ray.export.work.converted", None)
    report = export(config(tiny_bert, tiny_squad), exported)
    assert isinstance(report, ExportReport)
    assert report.megabytes > 0


def test_pipeline_takes_an_export(exported: str, tiny_bert: str) -> None:
    qa = pipeline("question-answering", exported)
    found = qa(question="Who?", context=CONTEXTS[0])
    assert found["answer"] == CONTEXTS[0][found["start"] : found["end"]]
    assert qa.model is None
    assert str(qa.device) == "cpu"


def test_f1_that_drops_too_far_is_an_error_with_both_figures(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([80.0, 70.0, 79.0])
    monkeypatch.setattr(
        "tinyqa_ray.export.work._figures",
        lambda *_: Figures(f1=next(figures), forced_f1=85.0, questions_per_s=1.0),
    )
    with pytest.raises(InputError) as refused:
        export(config(tiny_bert, tiny_squad, max_f1_drop=0.5), str(tmp_path / "out"))
    message = str(refused.value)
    assert "loses 1.00 F1, more than max_f1_drop 0.5" in message
    assert "F1 80.00 (forced 85.00) before" in message
    assert "F1 70.00 (forced 85.00) with attention maps in float" in message
    assert "F1 79.00 (forced 85.00) with attention maps, ffn outputs in float" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_products_that_lose_most_stay_in_float_where_the_first_trial_fails(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([80.0, 70.0, 79.8])
    monkeypatch.setattr(
        "tinyqa_ray.export.work._figures",
        lambda *_: Figures(f1=next(figures), forced_f1=85.0, questions_per_s=1.0),
    )
    report = export(config(tiny_bert, tiny_squad, max_f1_drop=0.5), str(tmp_path / "out"))
    assert report.float_products == "attention maps, ffn outputs"
    assert report.export.f1 == 79.8


@FAMILIES
def test_feed_forward_outputs_are_found_in_every_layer(family: str, request: pytest.FixtureRequest) -> None:
    network = pretrained.load_qa_model(request.getfixturevalue(f"tiny_{family}"))
    names = down_projections(converted(network, "fp32"), network.config)
    assert len(names) == network.config.num_hidden_layers
    assert all("output" in name and "attention" not in name for name in names)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"calibration": None}, "int8 has to see real windows"),
        ({"calibration_questions": 24}, "holds 24 questions, but calibration_questions is 24"),
    ],
)
def test_export_without_enough_data_is_refused(
    tiny_bert: str, tiny_squad: str, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        export(config(tiny_bert, tiny_squad, **changes), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"precision": "fp32"}, "is exported to int8, but precision is 'fp32'"),
        ({"device": "cuda"}, "CUDA|for CPUs"),
    ],
)
def test_export_is_not_run_as_something_else(exported: str, options: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        Reader.from_pretrained(exported, **options)


def test_broken_or_foreign_export_is_refused_in_one_line(exported: str, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(exported, tmp_path / "broken"))
    (broken / "openvino_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"OpenVINO cannot read openvino_model\.xml [^\n]*$"):
        Reader.from_pretrained(str(broken))
    foreign = Path(shutil.copytree(exported, tmp_path / "foreign"))
    text = (foreign / "openvino_model.xml").read_text()
    (foreign / "openvino_model.xml").write_text(text.replace("tinyqa_precision", "other"))
    with pytest.raises(InputError, match="was not written by tinyqa export"):
        Reader.from_pretrained(str(foreign))


def test_report_is_json(exported: str) -> None:
    report = json.loads((Path(exported) / "_SUCCESS.json").read_text())["report"]
    assert report["model"]["questions_per_s"] > 0
    assert report["export"]["f1"] >= 0


def test_export_leaves_the_log_of_others_as_it_was(exported: str, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("tinyqa_ray.other").warning("still heard")
    assert "still heard" in caplog.text
