from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from tinyqa_ray.cli import main
from tinyqa_ray.configs import AnswerConfig, ServeConfig
from tinyqa_ray.core import bundled, forms, said
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines import choose, speeds
from tinyqa_ray.engines.choose import Candidate
from tinyqa_ray.models import hub
from tinyqa_ray.reader import Reader

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(forms.FIXED)
    said.say_once.cache_clear()
    return tmp_path / "tinyqa-ray"


def candidate(name: str, windows_per_s: float, f1_lost: float | None = 0.0, refusal: str = "") -> Candidate:
    return Candidate(name=name, folder="", windows_per_s=windows_per_s, f1_lost=f1_lost, refusal=refusal)


def test_fastest_engine_that_loses_little_is_taken() -> None:
    plain = candidate("torch-fp32", 10)
    assert choose.best([plain]).name == "torch-fp32"
    assert choose.best([plain, candidate("onnx-int8", 30, 0.4), candidate("openvino-int8", 20)]).name == (
        "onnx-int8"
    )
    assert choose.best([plain, candidate("onnx-int8", 30, None)]).name == "torch-fp32", "not measured"
    assert choose.best([plain, candidate("onnx-int8", 30, 0.0, "no library")]).name == "torch-fp32"
    assert choose.best([plain, candidate("onnx-int8", 9)]).name == "torch-fp32", "slower"


def test_auto_without_forms_is_the_engine_of_who_does_not_ask(tiny_bert: str, cache: Path) -> None:
    asked, plain = (Reader.from_pretrained(tiny_bert, device="cpu", precision=p) for p in ("auto", None))
    assert asked.engine.name == plain.engine.name
    assert plain.engine.name.startswith("torch float32 on cpu")
    assert not cache.exists(), "nothing is made or timed"


@pytest.fixture
def form(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A form of the tiny model, made here instead of in another process."""
    pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    pytest.importorskip("openvino", reason="needs the extra cpu")
    from tinyqa_ray.configs import ExportConfig
    from tinyqa_ray.export import export

    def make(model: str, name: str, calibration: str | None, on: str | None, folder: Path) -> None:
        export(ExportConfig(model=model, format="onnx", precision="fp32"), str(folder))

    monkeypatch.setattr(forms, "_make", make)
    return forms.made(tiny_bert, "onnx-fp32")


def test_form_at_hand_is_timed_once_and_taken_where_it_is_faster(
    form: str, tiny_bert: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def found(model: str, plain: str, engines: dict[str, Any]) -> dict[str, float]:
        timed.append([*engines])
        return {"torch-fp32": 10.0, "onnx-fp32": 20.0}

    monkeypatch.setattr(speeds, "timed", found)
    for _ in range(2):
        reader = Reader.from_pretrained(tiny_bert, device="cpu", precision="auto")
        assert reader.engine.name.startswith("ONNX Runtime fp32")
    assert timed == [["torch-fp32", "onnx-fp32"]]
    assert Reader.from_pretrained(tiny_bert, device="cpu").engine.name.startswith("torch")
    one, two = (
        [
            r.null_score
            for r in Reader.from_pretrained(tiny_bert, precision=name).read([("Who?", CONTEXTS[0])])
        ]
        for name in ("torch-fp32", "onnx-fp32")
    )
    np.testing.assert_allclose(one, two, atol=1e-4)


def test_every_engine_is_timed_on_real_windows(form: str, tiny_bert: str) -> None:
    found = choose.candidates(tiny_bert)
    assert [each.name for each in found] == ["torch-fp32", "onnx-fp32"]
    assert all(each.windows_per_s > 0 for each in found)


def test_engine_can_be_fixed(tiny_bert: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forms.FIXED, "onnx-fp32")
    assert choose.chosen(tiny_bert).name == "onnx-fp32"
    monkeypatch.setenv(forms.FIXED, "jax")
    with pytest.raises(InputError, match=r"TINYQA_ENGINE is 'jax'; it must be one of torch-fp32"):
        choose.chosen(tiny_bert)


def test_form_that_cannot_be_made_leaves_the_others(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise InputError("onnx-fp32 could not be made (no such operator)")

    monkeypatch.setattr(forms, "_make", refused)
    monkeypatch.setattr(forms, "runs", lambda _: True)
    found = choose.candidates(tiny_bert, make=["onnx-fp32"])
    assert [(each.name, bool(each.refusal)) for each in found] == [("torch-fp32", False), ("onnx-fp32", True)]
    assert choose.best(found).name == "torch-fp32"
    assert "no such operator" in caplog.text


def test_reason_why_a_form_cannot_be_made_is_said_once(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise InputError("onnx-fp32 could not be made (it is the second test)")

    monkeypatch.setattr(forms, "_make", refused)
    monkeypatch.setattr(forms, "runs", lambda _: True)
    for _ in range(3):
        choose.candidates(tiny_bert, make=["onnx-fp32"])
    assert caplog.text.count("it is the second test") == 1


def test_form_that_is_cut_off_or_of_another_version_leaves_the_others(
    form: str, tiny_bert: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(form) / "onnx/model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:1000])
    assert Reader.from_pretrained(tiny_bert, device="cpu", precision="auto").engine.name.startswith("torch")
    assert "onnx-fp32 of" in caplog.text
    assert "ONNX Runtime cannot read it" in caplog.text
    assert "cannot be read; delete the folder" in choose.candidates(tiny_bert)[1].refusal
    file.write_bytes(whole)
    assert not choose.candidates(tiny_bert)[1].refusal, "once it is whole again, it counts again"
    (Path(form) / "_SUCCESS.json").write_text('{"report": {"model": {"accuracy": 1}}}')
    (found,) = choose.candidates(tiny_bert)[1:]
    assert "is not the report of an export of this version; delete the folder" in found.refusal


def test_form_that_breaks_after_it_was_timed_is_replaced_by_torch(
    form: str, tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(speeds, "timed", lambda *_: {"torch-fp32": 10.0, "onnx-fp32": 20.0})
    assert choose.chosen(tiny_bert).name == "onnx-fp32"
    (Path(form) / "onnx/model.onnx").write_bytes(b"broken")
    for _ in range(2):
        reader = Reader.from_pretrained(tiny_bert, device="cpu", precision="auto")
        assert reader.engine.name.startswith("torch")
    assert caplog.text.count("cannot be read, so torch runs it") == 1


def test_cache_folder_that_cannot_be_written_is_done_without_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(forms, "runs", lambda _: True)
    assert choose.chosen(bundled.MODEL).name == "torch-fp32"
    assert "forms of models cannot be kept there" in caplog.text


def test_engines_shows_all_candidates_and_the_choice(
    form: str, tiny_bert: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speeds, "timed", lambda *_: {"torch-fp32": 10.0, "onnx-fp32": 20.0})
    main.main(["engines", "--model", tiny_bert, "--forms", "none"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["onnx-fp32", "20.0", "2.00", "0.00", "<-", "auto"],
        ["torch-fp32", "10.0", "1.00", "0.00"],
    ]
    main.main(["engines", "--model", tiny_bert, "--forms", "none", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made["chosen"] == "onnx-fp32"
    assert made["candidates"][0]["folder"] == form


def test_engines_of_an_export_are_refused(form: str) -> None:
    with pytest.raises(SystemExit):
        main.main(["engines", "--model", form])


def test_forms_are_made_for_the_shipped_model_only(tiny_bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def watched(model: str, make: tuple[str, ...]) -> list[Candidate]:
        asked.append((model, make))
        return [candidate("torch-fp32", 1), candidate("openvino-fp32", 2), candidate("onnx-int8", 3)]

    monkeypatch.setattr(choose, "candidates", watched)
    assert [choose.chosen(model).name for model in (bundled.MODEL, tiny_bert)] == ["onnx-int8"] * 2
    assert asked == [(bundled.MODEL, forms.of_shipped()), (tiny_bert, ())]


def test_forms_of_a_hub_model_belong_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So answer, which pins the model, finds those that engines made, and a push makes new ones."""
    asked: list[str] = []
    commits = {"org/model": "a" * 40}

    def at_hand(model: str, name: str) -> None:
        asked.append(model)

    def commit(name: str, *, is_data: bool = False) -> str:
        return commits[name.partition("@")[0]]

    monkeypatch.setattr(forms, "at_hand", at_hand)
    monkeypatch.setattr(hub, "commit", commit)
    for name in ("org/model", f"org/model@{'a' * 40}"):
        choose.candidates(name)
    assert {*asked} == {f"org/model@{'a' * 40}"}
    commits["org/model"] = "b" * 40
    choose.candidates("org/model")
    assert asked[-1] == f"org/model@{'b' * 40}"


@pytest.mark.parametrize("name", ["torch-fp32", "onnx-int8"])
def test_engine_of_cpus_is_refused_beside_a_card(name: Any, tiny_bert: str) -> None:
    with pytest.raises(InputError, match=f"precision is '{name}', an engine of CPUs, but device is 'cuda'"):
        Reader.from_pretrained(tiny_bert, device="cuda", precision=name)
    refused = f"precision is '{name}', an engine of CPUs, but num_gpus is"
    with pytest.raises(InputError, match=refused):
        ServeConfig(model=tiny_bert, num_gpus=1, precision=name)
    with pytest.raises(InputError, match=refused):
        AnswerConfig(model=tiny_bert, pairs="p", num_gpus=0.5, precision=name)


def test_broken_int8_form_of_the_shipped_model_says_what_to_delete(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    located = bundled.located
    monkeypatch.setattr(bundled, "located", lambda name: form if name == bundled.INT8 else located(name))
    (Path(form) / "onnx/model.onnx").write_bytes(b"broken")
    with pytest.raises(
        InputError, match=rf"ONNX Runtime cannot read it .*, or delete {form}: then it is made"
    ):
        Reader.from_pretrained(bundled.INT8)
    with pytest.raises(InputError, match="precision is 'bf16'") as refused:
        Reader.from_pretrained(bundled.INT8, precision="bf16")
    assert "delete" not in str(refused.value), "nothing is wrong with the form"


def test_engine_of_an_export_cannot_be_named(form: str) -> None:
    with pytest.raises(
        InputError, match="is an export, which runs on one engine, but precision is 'onnx-int8'"
    ):
        Reader.from_pretrained(form, precision="onnx-int8")


def test_engines_of_no_model_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forms, "made", lambda *_, **__: pytest.fail("nothing is to be made"))
    with pytest.raises(SystemExit) as ended:
        main.main(["engines", "--model", str(tmp_path / "absent")])
    assert ended.value.code == 2
    assert "absent" in capsys.readouterr().err
