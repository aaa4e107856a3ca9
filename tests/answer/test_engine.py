"""The engine of a run of ``answer``: one for all of its actors, and for its continuation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.answer.engine import engine_of
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines import choose
from tinyqa_ray.engines.choose import Candidate


@pytest.fixture
def config(tiny_bert: str) -> AnswerConfig:
    return AnswerConfig(model=tiny_bert, pairs="pairs.jsonl")


@pytest.fixture
def stage(config: AnswerConfig, tmp_path: Path) -> Iterator[stage_folder.Stage]:
    with stage_folder.stage(str(tmp_path / "run"), config) as opened:
        yield opened


@pytest.fixture
def form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A form that is the fastest here."""
    folder = tmp_path / "form"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx/model_quantized.onnx").write_text("weights")
    (folder / "config.json").write_text("{}")
    found = Candidate(name="onnx-int8", folder=str(folder), windows_per_s=9.0)
    monkeypatch.setattr(choose, "chosen", lambda _: found)
    monkeypatch.setattr(choose, "folder_of", lambda model, name, *, portable=False: str(folder))
    return folder


def test_all_actors_load_the_form_that_the_driver_chose(
    form: Path, config: AnswerConfig, stage: stage_folder.Stage
) -> None:
    engine = engine_of(config, stage, begun=False)
    shutil.rmtree(form)
    assert engine.model.startswith(stage.output), "where every machine can read it"
    assert storage.read_bytes(f"{engine.model}/onnx/model_quantized.onnx") == b"weights"
    assert storage.read_bytes(f"{engine.model}/config.json") == b"{}"


def test_continued_run_keeps_its_engine_on_whichever_machine(
    form: Path, config: AnswerConfig, stage: stage_folder.Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine_of(config, stage, begun=False)
    monkeypatch.setattr(choose, "chosen", lambda model: Candidate(name=choose.PLAIN, folder=model))
    assert engine_of(config, stage, begun=True) == first


@pytest.mark.parametrize("shipped", [True, False])
def test_form_of_the_shipped_model_is_one_that_every_processor_reads(
    shipped: bool,
    form: Path,
    config: AnswerConfig,
    stage: stage_folder.Stage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of another one would need its calibration data again."""
    asked: list[bool] = []

    def folder_of(model: str, name: str, *, portable: bool = False) -> str:
        asked.append(portable)
        return str(form)

    monkeypatch.setattr(choose, "folder_of", folder_of)
    engine_of(replace(config, model=bundled.MODEL) if shipped else config, stage, begun=False)
    assert asked == [shipped]


def test_run_that_an_earlier_version_began_goes_on_with_torch(
    form: Path, config: AnswerConfig, stage: stage_folder.Stage
) -> None:
    assert engine_of(config, stage, begun=True).model == storage.absolute(config.model)


def test_engine_that_is_named_is_taken(
    form: Path, config: AnswerConfig, stage: stage_folder.Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine_of(replace(config, precision="bf16"), stage, begun=False)
    assert (plain.model, plain.precision) == (storage.absolute(config.model), "bf16")
    named: list[Any] = []
    monkeypatch.setattr(
        choose, "folder_of", lambda model, name, *, portable=False: named.append(name) or str(form)
    )
    engine_of(replace(config, precision="openvino-fp32"), stage, begun=False)
    assert named == ["openvino-fp32"]


def test_run_on_gpus_and_of_an_export_has_nothing_to_choose(
    form: Path, config: AnswerConfig, stage: stage_folder.Stage
) -> None:
    assert engine_of(replace(config, num_gpus=1.0), stage, begun=False).model == storage.absolute(
        config.model
    )
    assert engine_of(replace(config, model=str(form)), stage, begun=False).model == str(form)


def test_another_precision_is_another_run(config: AnswerConfig, tmp_path: Path) -> None:
    with stage_folder.stage(str(tmp_path / "other"), config) as opened:
        storage.write_json(opened.path("file.json"), 1)
    with (
        pytest.raises(InputError, match=r"precision None there, 'fp32' here"),
        stage_folder.stage(str(tmp_path / "other"), replace(config, precision="fp32")),
    ):
        pass
