"""What a first pass may leave out: the curve of share and F1, and the choice on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate import evaluate
from tinyqa_ray.evaluate.first_pass import Tried, curve
from tinyqa_ray.models.settings import keep_of, read_settings
from tinyqa_ray.reader.cascade import kept

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)


def test_curve_gives_what_each_choice_keeps_and_scores() -> None:
    tried = Tried(
        question=np.array([0, 0, 0, 1, 1]),
        first=np.array([4.0, 3.0, -np.inf, 2.0, 0.0]),
        second=np.array([1.0, 5.0, 9.0, 1.0, 2.0]),
        f1=np.array([0.0, 1.0, 0.0, 0.5, 0.0]),
        questions=2,
        threshold=0.5,
    )
    found = curve(tried)
    assert found.keep.tolist() == [0.0, 1.0, 2.0]
    assert found.share.tolist() == [0.4, 0.6, 0.8]
    assert found.f1.tolist() == [25.0, 75.0, 50.0]
    assert found.within(0.0) == 1, "from there on, F1 is never below that of all pairs"
    assert found.within(50.0) == 0


def test_question_is_lost_below_the_threshold_and_without_a_text() -> None:
    tried = Tried(
        question=np.array([0, 1, 1]),
        first=np.array([1.0, 1.0, 0.5]),
        second=np.array([-1.0, -2.0, 3.0]),
        f1=np.array([0.8, 0.0, 0.4]),
        questions=4,
        threshold=0.5,
    )
    assert curve(tried).f1.tolist() == [0.0, 10.0]
    assert curve(replace(tried, threshold=1.0)).f1.tolist() == pytest.approx([20.0, 30.0])


def test_curve_agrees_with_keeping_pairs_for_random_models() -> None:
    rng = np.random.default_rng(3)
    question = np.sort(np.concatenate([np.arange(40), rng.integers(0, 40, 300)]))
    first, second = rng.normal(size=340), rng.normal(size=340)
    tried = Tried(
        question=question,
        first=first,
        second=second,
        f1=rng.random(340),
        questions=40,
        threshold=0.6,
    )
    found = curve(tried)
    best = np.full(40, -np.inf)
    np.maximum.at(best, question, first)
    for place in (0, 50, 200, len(found.keep) - 1):
        mask = kept(first, best[question], found.keep[place])
        assert found.share[place] == pytest.approx(mask.mean())
        total = 0.0
        for number in range(40):
            own = np.flatnonzero(mask & (question == number))
            top = own[second[own].argmax()]
            unanswered = 1 / (1 + np.exp(second[top])) > 0.6
            total += 0.0 if unanswered else tried.f1[top]
        assert found.f1[place] == pytest.approx(100 * total / 40)


@pytest.fixture
def config(tiny_bert: str, tiny_roberta: str, tiny_squad: str, tmp_path: Path) -> EvaluateConfig:
    document = tiny.squad_document()
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["id"] = f"c-{question['id']}"
    (tmp_path / "others.json").write_text(json.dumps(document))
    return EvaluateConfig(
        model=tiny_roberta,
        data=tiny_squad,
        first_pass=tiny_bert,
        fit_first_pass=str(tmp_path / "others.json"),
        first_pass_candidates=5,
        window=WINDOW,
    )


def test_what_is_kept_is_fitted_and_written_for_answering(config: EvaluateConfig, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    report = evaluate(config, out)
    settings = read_settings(config.model, out)
    written = json.loads((tmp_path / "out" / "first-pass.json").read_text())
    assert config.first_pass is not None
    assert keep_of(config.first_pass, None, settings) == written["keep"] == settings.first_pass_keep
    assert 0.0 < written["share"] <= 1.0
    assert written["f1"] >= 0.99 * written["f1_of_all_pairs"]
    assert written["curve"]["share"] == sorted(written["curve"]["share"])
    assert (settings.first_pass_fitted_on or "").startswith("sha256")
    plain = evaluate(replace(config, fit_first_pass=None, first_pass=None), str(tmp_path / "plain"))
    assert plain.f1 == report.f1, "a plain evaluation reads no pair twice"


def test_fit_on_what_is_measured_or_without_a_first_model_is_refused(
    config: EvaluateConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="shares 24 questions"):
        evaluate(replace(config, fit_first_pass=config.data), str(tmp_path / "out"))
    with pytest.raises(InputError, match="first_pass and fit_first_pass belong together"):
        replace(config, first_pass=None)
