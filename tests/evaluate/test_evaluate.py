from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import AutoModel

from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import normalised
from tinyqa_ray.evaluate import EvaluateReport, evaluate
from tinyqa_ray.evaluate import work as module
from tinyqa_ray.evaluate.score_files import read_gold, score_files
from tinyqa_ray.evaluate.work import measured
from tinyqa_ray.models.settings import FILE, ModelSettings, read_settings, write_settings

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)


@pytest.fixture
def model(tiny_bert: str, tmp_path: Path) -> str:
    """A copy, which tests may write settings into."""
    return str(shutil.copytree(tiny_bert, tmp_path / "model"))


@pytest.fixture
def config(model: str, tiny_squad: str) -> EvaluateConfig:
    return EvaluateConfig(model=model, data=tiny_squad, window=WINDOW)


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    """The questions of the tiny data under other ids."""
    document = tiny.squad_document(4)
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["id"] = f"c-{question['id']}"
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    return str(path)


def write_questions(path: Path, *, answerable: bool) -> str:
    """The questions of two paragraphs that have an answer there, or those that have none."""
    document = tiny.squad_document(2)
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [row for row in paragraph["qas"] if bool(row["answers"]) == answerable]
    path.write_text(json.dumps(document))
    return str(path)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_figures_are_the_official_ones_of_the_written_files(config: EvaluateConfig, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    report = evaluate(config, str(out), lambda done, total: seen.append((done, total)))
    official = score_files(
        config.data, str(out / "predictions.json"), str(out / "na_probs.json"), report.no_answer_threshold
    )
    assert (report.exact, report.f1, report.questions) == (official["exact"], official["f1"], 24)
    assert report.has_ans_f1 == official["HasAns_f1"]
    assert report.no_ans_f1 == official["NoAns_f1"]
    forced = score_files(config.data, str(out / "predictions.json"))
    assert (report.forced_exact, report.forced_f1) == (forced["HasAns_exact"], forced["HasAns_f1"])
    assert report.always_abstain == pytest.approx(100 / 3)
    metrics = read(out, "metrics.json")
    assert metrics["official"] == official
    values = json.loads(json.dumps(asdict(report)))  # JSON has no tuples
    assert {name: metrics[name] for name in values} == values
    assert seen[-1] == (24, 24)


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_figures_measured_beside_training_are_those_of_the_stage(
    config: EvaluateConfig, tmp_path: Path, threshold: float | None
) -> None:
    if threshold is not None:
        write_settings(config.model, ModelSettings(no_answer_threshold=threshold))
    report = evaluate(config, str(tmp_path / "out"))
    files = sorted(Path(config.model).iterdir())
    found = measured(config.model, config.data, config.window)
    for name in ("exact", "f1", "has_ans_f1", "no_ans_f1", "forced_f1", "questions", "parameters"):
        assert found.pop(name) == getattr(report, name), name
    official = read(tmp_path / "out", "metrics.json")["official"]
    assert found == {name: official[name] for name in ("best_exact", "best_f1")}
    assert official["best_f1"] >= report.f1
    assert sorted(Path(config.model).iterdir()) == files, "nothing is written"


def test_figures_that_the_data_cannot_have_are_none_beside_training_too(model: str, tmp_path: Path) -> None:
    found = measured(model, write_questions(tmp_path / "none.json", answerable=False), WINDOW)
    assert (found["has_ans_f1"], found["forced_f1"], found["questions"]) == (None, None, 2)
    assert found["best_f1"] == 100.0


def test_model_or_data_that_is_gone_is_refused_beside_training(
    model: str, tiny_squad: str, tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent")
    for given in ((absent, tiny_squad), (model, absent)):
        with pytest.raises(InputError, match=f"^{re.escape(absent)}: "):
            measured(*given, WINDOW)


def test_predictions_stand_in_their_contexts(config: EvaluateConfig, tmp_path: Path) -> None:
    evaluate(config, str(tmp_path / "out"))
    contexts = {
        question["id"]: paragraph["context"]
        for article in tiny.squad_document()["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    predictions = read(tmp_path / "out", "predictions.json")
    na_probs = read(tmp_path / "out", "na_probs.json")
    assert predictions.keys() == na_probs.keys() == contexts.keys()
    assert all(text and text in contexts[name] for name, text in predictions.items())
    assert all(0 <= value <= 1 for value in na_probs.values())


def test_page_tells_model_questions_and_figures(config: EvaluateConfig, tmp_path: Path) -> None:
    report = evaluate(config, str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert f"{report.f1:.1f}" in page
    assert config.model in page
    assert "Who built the lighthouse?" in page


def test_finished_evaluation_is_not_measured_again(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(config, str(tmp_path / "out"))
    monkeypatch.setattr(module, "_reader", None)
    assert evaluate(replace(config, threads=1), str(tmp_path / "out")) == report


def test_threshold_is_fitted_on_other_questions_and_written_into_the_output(
    config: EvaluateConfig, calibration: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    report = evaluate(replace(config, fit_threshold=calibration), out)
    settings = read_settings(config.model, out)
    assert read_settings(config.model) == ModelSettings(), "the model's folder is an input"
    assert settings.no_answer_threshold == report.no_answer_threshold != 0.5
    assert settings.fitted_on is not None
    assert settings.fitted_on.startswith("sha256")
    later = evaluate(replace(config, settings=out), str(tmp_path / "later"))
    assert later.no_answer_threshold == report.no_answer_threshold
    assert not (tmp_path / "later" / FILE).exists(), "nothing was fitted there"
    # On the questions that it was fitted on, under their own ids, no other threshold scores more.
    half = replace(config, data=tiny.write_squad(tmp_path / "half.json", 4))
    best = evaluate(replace(half, settings=out), str(tmp_path / "best")).f1
    for threshold in (0.0, 0.5, 1.0):
        write_settings(config.model, ModelSettings(no_answer_threshold=threshold))
        assert evaluate(half, str(tmp_path / f"at-{threshold}")).f1 <= best


def test_temperature_is_fitted_on_other_questions_and_written_into_the_output(
    config: EvaluateConfig, calibration: str, tmp_path: Path
) -> None:
    fitting = replace(config, fit_temperature=calibration)
    out = str(tmp_path / "out")
    report = evaluate(fitting, out)
    settings = read_settings(config.model, out)
    assert settings.temperature == report.temperature != 1.0
    assert settings.score_shift == report.score_shift != 0.0
    assert (settings.temperature_fitted_on or "").startswith("sha256")
    assert (settings.no_answer_threshold, settings.fitted_on) == (0.5, None)
    assert evaluate(fitting, out) == report
    # One fit is kept where the other is made.
    both = evaluate(replace(config, settings=out, fit_threshold=calibration), str(tmp_path / "both"))
    kept = read_settings(config.model, str(tmp_path / "both"))
    assert (kept.temperature, kept.score_shift) == (report.temperature, report.score_shift)
    assert kept.no_answer_threshold == both.no_answer_threshold != 0.5


def test_threshold_beside_the_model_decides_what_is_answered(config: EvaluateConfig, tmp_path: Path) -> None:
    reports = []
    for threshold in (1.0, 0.0):
        write_settings(config.model, ModelSettings(no_answer_threshold=threshold))
        reports.append(evaluate(config, str(tmp_path / f"at-{threshold}")))
    answering, abstaining = reports
    predictions = json.loads((tmp_path / "at-1.0" / "predictions.json").read_text())
    gold = read_gold(config.data)
    # An answer of articles alone ("the") counts as none, by the official rule.
    silent = [not normalised.normalize_answer(predictions[id]) for id, texts in gold.items() if not texts]
    assert answering.no_ans_f1 == pytest.approx(100 * sum(silent) / len(silent))
    assert abstaining.no_ans_f1 == 100.0
    assert abstaining.f1 == pytest.approx(abstaining.always_abstain)
    assert answering.has_ans_f1 == answering.forced_f1 == abstaining.forced_f1


def test_finished_folder_is_not_served_for_another_threshold(config: EvaluateConfig, tmp_path: Path) -> None:
    evaluate(config, str(tmp_path / "out"))
    write_settings(config.model, ModelSettings(no_answer_threshold=0.9))
    with pytest.raises(InputError, match=r"content of settings 'threshold 0\.5, .* there, 'threshold 0\.9, "):
        evaluate(config, str(tmp_path / "out"))
    assert evaluate(config, str(tmp_path / "new")).no_answer_threshold == 0.9


def test_threshold_is_not_fitted_on_what_is_measured(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shares 24 questions with .* \(q0-0, …\)"):
        evaluate(replace(config, fit_threshold=config.data), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_threshold_of_a_hub_model_can_be_fitted(
    config: EvaluateConfig, calibration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = module._reader(config)
    monkeypatch.setattr(module, "_reader", lambda _: reader)
    out = str(tmp_path / "out")
    report = evaluate(replace(config, model="some/model", fit_threshold=calibration), out)
    assert read_settings("some/model", out).no_answer_threshold == report.no_answer_threshold


def test_model_without_a_head_is_refused(config: EvaluateConfig, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(config.model, bare)
    AutoModel.from_pretrained(config.model).save_pretrained(bare)
    with pytest.raises(InputError, match="has no question-answering head"):
        evaluate(replace(config, model=str(bare)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_data_without_unanswerable_questions_has_no_such_figures(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    data = write_questions(tmp_path / "answerable.json", answerable=True)
    report = evaluate(replace(config, data=data), str(tmp_path / "out"))
    assert isinstance(report, EvaluateReport)
    assert (report.questions, report.no_ans_total, report.no_ans_f1, report.always_abstain) == (
        4,
        0,
        None,
        0.0,
    )


def test_unanswerable_questions_alone_are_measured(config: EvaluateConfig, tmp_path: Path) -> None:
    data = write_questions(tmp_path / "none.json", answerable=False)
    report = evaluate(replace(config, data=data), str(tmp_path / "out"))
    assert (report.has_ans_total, report.has_ans_f1, report.forced_f1) == (0, None, None)
    assert report.always_abstain == 100.0
