from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyqa_ray import recipes, runner
from tinyqa_ray.augment import AugmentReport
from tinyqa_ray.configs import AugmentConfig, EvaluateConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill import TeacherLogitsReport
from tinyqa_ray.errors import InputError
from tinyqa_ray.evaluate import EvaluateReport

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)


@pytest.fixture
def recipe(tiny_squad: str, tiny_bert: str) -> recipes.Recipe:
    return recipes.Recipe(
        name="tiny",
        stages=(
            ("augmented", AugmentConfig(data=tiny_squad, embeddings=tiny_bert, copies=2)),
            ("windows", TeacherLogitsConfig(data="@augmented", tokenizer=tiny_bert, window=WINDOW)),
            ("evaluation", EvaluateConfig(model=tiny_bert, data=tiny_squad, window=WINDOW)),
        ),
    )


def test_recipe_runs_in_order_and_once(recipe: recipes.Recipe, tmp_path: Path) -> None:
    started: list[str] = []
    told: list[runner.StageResult] = []
    output = str(tmp_path / "run")
    first = runner.run(recipe, output, lambda name: started.append(name), told.append)
    assert [result.name for result in first] == started == ["augmented", "windows", "evaluation"]
    assert told == first
    assert not any(result.was_finished for result in first)
    augmented, windows, evaluation = (result.report for result in first)
    assert isinstance(augmented, AugmentReport)
    assert isinstance(windows, TeacherLogitsReport)
    assert isinstance(evaluation, EvaluateReport)
    assert (augmented.copies, windows.paragraphs, evaluation.questions) == (24, 24, 24)
    made = json.loads((tmp_path / "run" / "windows" / "_SUCCESS.json").read_text())
    assert made["config"]["data"] == f"{output}/augmented"

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    again = runner.run(recipe, output)
    assert all(result.was_finished for result in again)
    assert [(r.name, r.report, r.seconds) for r in again] == [(r.name, r.report, r.seconds) for r in first]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == times


def test_mistake_in_a_later_stage_keeps_the_finished_ones(recipe: recipes.Recipe, tmp_path: Path) -> None:
    stages = dict(recipe.stages)
    wrong = TeacherLogitsConfig(data="@augmented", tokenizer=str(tmp_path / "absent"), window=WINDOW)
    output = tmp_path / "run"
    with pytest.raises(InputError, match="no such model folder"):
        runner.run(
            recipes.Recipe(name="wrong", stages=(("augmented", stages["augmented"]), ("windows", wrong))),
            str(output),
        )
    assert [path.name for path in output.iterdir()] == ["augmented"]
    results = runner.run(recipes.Recipe(name="right", stages=recipe.stages[:2]), str(output))
    assert [result.was_finished for result in results] == [True, False]
