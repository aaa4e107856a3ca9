from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

from tinyqa_ray.configs import EvaluateConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate import evaluate, ranks
from tinyqa_ray.evaluate.ranks import Judged
from tinyqa_ray.models.settings import FILE, ModelSettings, read_settings, write_settings
from tinyqa_ray.reader.ranks import scaled


def drawn(count: int, settings: ModelSettings) -> list[Judged]:
    """Questions with three answers, each right as often as its score by ``settings`` says."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        scores = np.sort(rng.uniform(0.02, 0.9, 3))[::-1].tolist()
        answers = ("a", "b", "c")
        judged = Judged(tuple(scores), answers, (0.0, 0.0, 0.0))
        right = [float(rng.random() < chance) for _, chance, _ in judged.chances(settings)]
        made.append(replace(judged, right=tuple(right)))
    return made


def test_scale_of_ranks_that_made_the_data_is_found() -> None:
    # With these, a third answer is seldom limited by the score of the second.
    true = ModelSettings(rank_temperatures=(0.8, 1.2), rank_shifts=(0.5, 2.0))
    found = ranks.fitted(drawn(20_000, true), ModelSettings())
    assert found.rank_temperatures == pytest.approx(true.rank_temperatures, rel=0.15)
    assert found.rank_shifts == pytest.approx(true.rank_shifts, abs=0.25)


def test_fit_makes_scores_of_later_answers_the_share_of_right_ones() -> None:
    data = drawn(5_000, ModelSettings(rank_temperatures=(2.0, 0.5), rank_shifts=(2.0, 2.0)))
    fitted = ranks.fitted(data, ModelSettings())
    before, after = ranks.errors(data, ModelSettings()), ranks.errors(data, fitted)
    assert before[0] == after[0]
    assert all(mine < 3 < theirs for mine, theirs in zip(after[1:], before[1:], strict=True))


def test_without_later_answers_nothing_is_fitted() -> None:
    settings = ModelSettings(temperature=2.0)
    assert ranks.fitted([Judged((0.5,), ("a",), (1.0,))], settings) == settings
    assert scaled(0.3, 1, settings) == 0.3


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> EvaluateConfig:
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    return EvaluateConfig(
        model=str(model),
        data=tiny.write_squad(tmp_path / "dev.json"),
        window=WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=16),
        threads=1,
    )


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    """The same questions under other ids."""
    document = tiny.squad_document()
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                question["id"] = f"other {question['id']}"
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_ranks_are_fitted_with_the_temperature_and_measured(
    config: EvaluateConfig, calibration: str, tmp_path: Path
) -> None:
    plain = evaluate(config, str(tmp_path / "plain"))
    assert len(plain.rank_errors) == ranks.RANKS
    assert plain.rank_errors[0] == pytest.approx(plain.calibration_error)
    fitting = replace(config, fit_temperature=calibration)
    report = evaluate(fitting, str(tmp_path / "out"))
    settings = read_settings(config.model, str(tmp_path / "out"))
    assert len(settings.rank_temperatures) == len(settings.rank_shifts) == 2
    assert settings.ranks_fitted_on == settings.temperature_fitted_on
    # The data of the fit are those that are measured, so it must be better.
    assert sum(report.rank_errors[1:]) < sum(plain.rank_errors[1:])
    assert evaluate(fitting, str(tmp_path / "out")) == report
    # A new fit does not keep the ranks of an old scale, and one of a threshold keeps both.
    both = replace(config, settings=str(tmp_path / "out"), fit_threshold=calibration)
    evaluate(both, str(tmp_path / "both"))
    kept = read_settings(config.model, str(tmp_path / "both"))
    assert (kept.rank_temperatures, kept.rank_shifts) == (settings.rank_temperatures, settings.rank_shifts)


def test_settings_without_ranks_are_those_that_earlier_versions_read(tmp_path: Path) -> None:
    write_settings(str(tmp_path), ModelSettings(temperature=2.0))
    assert not [name for name in json.loads((tmp_path / FILE).read_text()) if name.startswith("rank")]
    assert read_settings(str(tmp_path)) == ModelSettings(temperature=2.0)
    fitted = ModelSettings(rank_temperatures=(1.5, 2.0), rank_shifts=(0.0, -1.0), ranks_fitted_on="x")
    write_settings(str(tmp_path), fitted)
    assert read_settings(str(tmp_path)) == fitted


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank_temperatures": (1.0,)},
        {"rank_temperatures": (0.0,), "rank_shifts": (0.0,)},
        {"rank_temperatures": (float("inf"),), "rank_shifts": (0.0,)},
        {"rank_temperatures": ("a",), "rank_shifts": (0.0,)},
    ],
)
def test_ranks_out_of_range_are_refused(wrong: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(InputError, match="rank_"):
        ModelSettings(**wrong)  # type: ignore[arg-type]
