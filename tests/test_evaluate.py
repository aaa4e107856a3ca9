"""Evaluation: figures that the official metrics confirm, and a threshold that is fitted elsewhere."""

import json
from pathlib import Path

import pytest
import tiny

from tinyqa_ray import models, score, storage
from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.evaluate import EvaluateReport, evaluate

WINDOW = WindowConfig(max_seq_len=64, doc_stride=16, max_query_len=16)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return tiny.save_qa_model(tmp_path / "model", seed=3)


def other_questions(path: Path) -> str:
    """The tiny data under other question ids."""
    document = tiny.squad_document()
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["id"] = f"other-{question['id']}"
    path.write_text(json.dumps(document))
    return str(path)


def test_figures_are_the_official_ones(model: str, tiny_squad: str, tmp_path: Path) -> None:
    report = evaluate(EvaluateConfig(model=model, data=tiny_squad, window=WINDOW), str(tmp_path / "out"))
    files = [str(tmp_path / "out" / name) for name in ("predictions.json", "na_probs.json")]
    official = score.score_files(tiny_squad, *files, na_prob_threshold=report.no_answer_threshold)
    assert (report.exact, report.f1) == (official["exact"], official["f1"])
    assert (report.has_ans_f1, report.no_ans_f1) == (official["HasAns_f1"], official["NoAns_f1"])
    forced = score.score_files(tiny_squad, files[0])
    assert report.forced_f1 == pytest.approx(forced["HasAns_f1"])
    assert report.always_abstain == pytest.approx(100 * report.no_ans_total / report.questions)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["official"] == pytest.approx(official)
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_finished_evaluation_is_not_run_again(model: str, tiny_squad: str, tmp_path: Path) -> None:
    config = EvaluateConfig(model=model, data=tiny_squad, window=WINDOW)
    first = evaluate(config, str(tmp_path / "out"))
    assert evaluate(config, str(tmp_path / "out"), lambda done, total: pytest.fail("read again")) == first


def test_threshold_is_fitted_on_other_data_and_stored(model: str, tiny_squad: str, tmp_path: Path) -> None:
    fitted_on = other_questions(tmp_path / "other.json")
    config = EvaluateConfig(model=model, data=tiny_squad, fit_threshold=fitted_on, window=WINDOW)
    report = evaluate(config, str(tmp_path / "fit"))
    settings = models.read_settings(model)
    assert settings.no_answer_threshold == report.no_answer_threshold
    assert settings.fitted_on == storage.identity(fitted_on)
    # The same questions under other names: what is best there is best here.
    at_half = evaluate_at(0.5, model, tiny_squad, tmp_path / "half")
    assert report.f1 >= at_half.f1


def evaluate_at(threshold: float, model: str, data: str, output: Path) -> EvaluateReport:
    models.write_settings(model, models.ModelSettings(no_answer_threshold=threshold))
    return evaluate(EvaluateConfig(model=model, data=data, window=WINDOW), str(output))


def test_stored_threshold_decides_what_is_answered(model: str, tiny_squad: str, tmp_path: Path) -> None:
    never = evaluate_at(1.0, model, tiny_squad, tmp_path / "never")
    always = evaluate_at(0.0, model, tiny_squad, tmp_path / "always")
    assert (never.no_ans_f1, always.no_ans_f1) == (0.0, 100.0)
    assert always.f1 == pytest.approx(always.always_abstain)
    assert never.has_ans_f1 == never.forced_f1 == always.forced_f1


def test_another_threshold_is_not_served_an_old_result(model: str, tiny_squad: str, tmp_path: Path) -> None:
    evaluate_at(1.0, model, tiny_squad, tmp_path / "out")
    with pytest.raises(InputError, match="content of settings"):
        evaluate_at(0.0, model, tiny_squad, tmp_path / "out")


def test_threshold_fitted_on_what_is_measured_is_refused(model: str, tiny_squad: str, tmp_path: Path) -> None:
    config = EvaluateConfig(model=model, data=tiny_squad, fit_threshold=tiny_squad, window=WINDOW)
    with pytest.raises(InputError, match="shares 24 questions"):
        evaluate(config, str(tmp_path / "out"))
    assert models.read_settings(model) == models.ModelSettings()
    assert not (tmp_path / "out").exists()


def test_unanswerable_questions_alone_are_measured(model: str, tmp_path: Path) -> None:
    document = tiny.squad_document()
    for paragraph in document["data"][0]["paragraphs"]:
        paragraph["qas"] = [question for question in paragraph["qas"] if not question["answers"]]
    (tmp_path / "none.json").write_text(json.dumps({"data": document["data"][:1]}))
    config = EvaluateConfig(model=model, data=str(tmp_path / "none.json"), window=WINDOW)
    report = evaluate(config, str(tmp_path / "out"))
    assert report.has_ans_total == 0
    assert report.forced_f1 is None
    assert report.always_abstain == 100.0
