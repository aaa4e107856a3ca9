from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinyqa_ray.cli import main
from tinyqa_ray.configs import AnswerConfig, EvaluateConfig, ExportConfig, ServeConfig
from tinyqa_ray.core import bundled, said, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, read_settings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.transformers_pipeline import pipeline

FOLDER = Path(bundled.asset(bundled.MODEL))
CONTEXT = (
    "Warsaw is the capital and largest city of Poland. It stands on the Vistula River in east-central "
    "Poland, roughly 260 kilometres from the Baltic Sea and 300 kilometres from the Carpathian Mountains."
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tinyqa-ray"


def test_names_stand_for_the_packages_folder() -> None:
    assert bundled.located(bundled.MODEL) == str(FOLDER)
    assert bundled.located("deepset/tinyroberta-squad2") == "deepset/tinyroberta-squad2"


def test_a_folder_of_that_name_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / bundled.INT8).mkdir()
    assert bundled.located(bundled.INT8) == bundled.INT8


def test_the_model_is_small_whole_and_in_half_precision() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 50e6
    weights = load_file(FOLDER / "model.safetensors")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}
    assert all(np.isfinite(array).all() for array in weights.values())
    network = pretrained.load_qa_model(bundled.MODEL)
    assert network.config.num_hidden_layers == 6
    # MiniLM-L6's size: no larger than the model for trials.
    assert sum(parameter.numel() for parameter in network.parameters()) <= 22.6e6


def test_its_threshold_and_temperature_were_fitted() -> None:
    settings = read_settings(bundled.MODEL)
    assert settings.fitted_on is not None
    assert settings.temperature_fitted_on is not None


def test_it_is_the_default_everywhere() -> None:
    found: list[Any] = [
        AnswerConfig(pairs="pairs.jsonl"),
        EvaluateConfig(data="dev.json"),
        ExportConfig(),
        ServeConfig(),
    ]
    assert {config.model for config in found} == {bundled.MODEL}
    assert pipeline("question-answering")(question="Where is Warsaw?", context=CONTEXT)["answer"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the capital of Poland?", "Warsaw"),
        ("On which river does Warsaw stand?", "Vistula"),
        ("How far is Warsaw from the Baltic Sea?", "260 kilometres"),
    ],
)
def test_it_answers(question: str, expected: str) -> None:
    answer = Reader.from_pretrained().answer(question, CONTEXT, threshold=1.0)[0].answer
    assert answer is not None
    assert expected in answer


def test_ask_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    main.main(["ask", "What is the capital of Poland?", "--context", CONTEXT, "--threshold", "1"])
    assert capsys.readouterr().out.startswith("Warsaw\n")


@pytest.mark.parametrize("model", [bundled.MODEL, bundled.INT8])
def test_runs_know_it_by_its_content(model: str, cache: Path, tmp_path: Path) -> None:
    """The int8 form by the model that it is made of: another machine goes on with its own."""
    config = AnswerConfig(model=model, pairs="pairs.jsonl")
    with stage_folder.stage(str(tmp_path / "run"), config, inputs=("model",)) as stage:
        assert stage.inputs["model"].startswith("sha256 ")
        stage.publish(ModelSettings())
    assert not cache.exists()


def test_int8_is_calibrated_on_the_bundled_excerpt() -> None:
    assert ExportConfig().calibration == bundled.asset("squad2_train.json")
    assert ExportConfig(model="other").calibration is None
    assert ExportConfig(precision="bf16").calibration is None


class Engines:
    """Stands for the process that makes the forms and times them."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch, **speeds: float) -> None:
        self.commands: list[list[str]] = []
        self.candidates = [
            {
                "name": name.replace("_", "-"),
                "folder": str(cache / name),
                "windows_per_s": speed,
                "refusal": "",
            }
            for name, speed in speeds.items()
        ]
        self.returncode = 0
        self.said = ""
        self.environments: list[dict[str, str]] = []
        monkeypatch.setattr(subprocess, "Popen", self.run)
        for each in (bundled._say_slower, bundled._chosen_for_this_process, said.say_once):
            each.cache_clear()

    def run(self, command: list[str], **options: Any) -> Engines:
        self.commands.append(command)
        self.environments.append(options["env"])
        for each in self.candidates:
            if not each["refusal"]:
                Path(str(each["folder"])).mkdir(parents=True, exist_ok=True)
        self.stdout = io.StringIO(f"noise\n{json.dumps({'candidates': self.candidates})}\n")
        self.stderr = io.StringIO(self.said)
        return self

    def wait(self) -> None:
        pass


def test_int8_is_the_fastest_form_of_int8_and_chosen_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines = Engines(cache, monkeypatch, torch_fp32=30.0, onnx_int8=50.0, openvino_int8=40.0, onnx_fp32=90.0)
    first = bundled.located(bundled.INT8)
    assert bundled.located(bundled.INT8) == first == str(cache / "onnx_int8")
    assert [command[:4] for command in engines.commands] == [[sys.executable, "-m", "tinyqa_ray", "engines"]]
    assert "times the speed" not in caplog.text
    Path(first).rmdir()
    bundled.located(bundled.INT8)
    assert len(engines.commands) == 2, "a form that is gone is made again"


def test_int8_of_another_processor_is_chosen_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, has: Callable[..., None]
) -> None:
    engines = Engines(cache, monkeypatch, torch_fp32=30.0, onnx_int8=50.0)
    bundled.located(bundled.INT8)
    has("amx")  # no processor has that alone, so it is another one than this
    bundled.located(bundled.INT8)
    assert len(engines.commands) == 2


def test_int8_that_is_slower_says_so_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Engines(cache, monkeypatch, torch_fp32=40.0, openvino_int8=30.0)
    for _ in range(2):
        bundled.located(bundled.INT8)
    assert caplog.text.count("tinyqa-mini-int8 runs at 0.75 times the speed of tinyqa-mini") == 1


def test_int8_where_nothing_can_be_kept_is_made_for_the_process_alone(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engines = Engines(cache, monkeypatch, torch_fp32=30.0, onnx_int8=50.0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert bundled.located(bundled.INT8) == str(cache / "onnx_int8")
    assert len(engines.commands) == 1
    made_in = Path(engines.environments[0]["XDG_CACHE_HOME"])
    assert made_in.is_dir()
    assert made_in != tmp_path / "file"
    assert caplog.text.count("so every process makes it anew; set XDG_CACHE_HOME") == 1


def test_what_the_making_process_says_is_heard(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even where this process has its stderr in a file."""
    engines = Engines(cache, monkeypatch, torch_fp32=30.0, onnx_int8=50.0)
    engines.said = "making onnx-int8\nstill making onnx-int8 (10 s)\n"
    bundled.located(bundled.INT8)
    assert "still making onnx-int8 (10 s)" in caplog.text


def test_int8_that_cannot_be_made_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines = Engines(cache, monkeypatch, torch_fp32=40.0, openvino_int8=0.0)
    engines.candidates[1]["refusal"] = "int8 is made with NNCF, which …"
    with pytest.raises(InputError, match=r"^tinyqa-mini-int8: could not be made \(int8 is made with NNCF"):
        bundled.located(bundled.INT8)
    engines.returncode = 2
    engines.said = "noise\ntinyqa: there is no room\n"
    with pytest.raises(InputError, match=r"^tinyqa-mini-int8: could not be made \(there is no room\)"):
        bundled.located(bundled.INT8)
    assert not [path for path in cache.iterdir() if path.suffix not in ("", ".lock")]


def test_int8_without_its_libraries_says_what_to_install(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Engines(cache, monkeypatch, torch_fp32=40.0)
    with pytest.raises(InputError, match=r"could not be made \(what makes it is not installed; pip install"):
        bundled.located(bundled.INT8)


@pytest.mark.slow
def test_int8_answers_like_the_model(cache: Path) -> None:
    pytest.importorskip("nncf", reason="needs the extra cpu")
    quick = Reader.from_pretrained(bundled.INT8)
    assert "int8" in quick.engine.name
    assert quick.settings == read_settings(bundled.MODEL)
    answer = quick.answer("On which river does Warsaw stand?", CONTEXT, threshold=1.0)[0].answer
    assert answer is not None
    assert "Vistula" in answer
    report = json.loads((Path(bundled.located(bundled.INT8)) / "_SUCCESS.json").read_text())["report"]
    # On these 400 questions a point is four of them; on 1,298 the form lost no F1 (MODEL_CARD.md).
    assert report["model"]["f1"] - report["export"]["f1"] <= 2.0
