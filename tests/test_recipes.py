from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tinyqa_ray import recipes, runs
from tinyqa_ray.configs import (
    AugmentConfig,
    EvaluateConfig,
    TeacherLogitsConfig,
    WindowConfig,
)
from tinyqa_ray.errors import InputError

RECIPES = [recipes.tinyroberta(), recipes.tinybert()]


@pytest.fixture
def quickstart(tiny_bert: str) -> recipes.Recipe:
    return recipes.quickstart(tiny_bert)


def stages(recipe: recipes.Recipe) -> dict[str, Any]:
    return dict(recipe.stages)


def has(config: Any, **expected: Any) -> None:
    assert {name: getattr(config, name) for name in expected} == expected


def test_tinyroberta_has_the_numbers_of_its_model_card() -> None:
    found = stages(recipes.tinyroberta())
    has(found["augmented"], copies=20, data="squad_v2:train")
    has(
        found["intermediate"],
        objective="intermediate",
        data="@windows",
        student="deepset/tinyroberta-6l-768d",
        teacher="deepset/roberta-base-squad2",
    )
    has(found["teacher-logits"], model=("deepset/roberta-large-squad2",), data="squad_v2:train")
    has(
        found["student"],
        objective="prediction",
        student="@intermediate/model",
        batch_size=96,
        epochs=4,
        learning_rate=3e-5,
        warmup=0.2,
        distillation_weight=0.75,
        temperature=1.5,
    )
    assert found["intermediate"].workers == found["student"].workers == 4


def test_tinybert_has_the_numbers_of_its_model_card() -> None:
    found = stages(recipes.tinybert())
    teacher = "deepset/bert-base-uncased-squad2"
    has(found["augmented"], copies=20)
    shared = {"batch_size": 26, "epochs": 5, "temperature": 1.0}
    has(
        found["intermediate"],
        objective="intermediate",
        student="huawei-noah/TinyBERT_General_6L_768D",
        teacher=teacher,
        learning_rate=5e-5,
        head_dropout=0.1,
        **shared,
    )
    has(found["teacher-logits"], model=(teacher,))
    has(found["student"], objective="prediction", learning_rate=3e-5, distillation_weight=1.0, **shared)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_published_recipes_cut_the_published_windows_and_measure_on_dev(recipe: recipes.Recipe) -> None:
    expected = WindowConfig(max_seq_len=384, doc_stride=128, max_query_len=64)
    configs = [config for _, config in recipe.stages]
    windowed = [c for c in configs if isinstance(c, TeacherLogitsConfig | EvaluateConfig)]
    assert {config.window for config in windowed} == {expected}
    assert configs[-1] == EvaluateConfig(model="@student/model", data="squad_v2:validation")


def test_paths_of_earlier_stages_become_folders(quickstart: recipes.Recipe) -> None:
    for recipe in [quickstart, *RECIPES]:
        names = [name for name, _ in recipe.stages]
        assert len(set(names)) == len(names)
        for name, config in recipe.stages:
            assert set(recipes.references(config)) <= set(names[: names.index(name)])
            found = recipes.resolved(config, "s3://bucket/run")
            assert recipes.references(found) == []
            for reference in recipes.references(config):
                assert f"s3://bucket/run/{reference}" in str(found)
    student = recipes.resolved(stages(recipes.tinybert())["student"], "out")
    has(student, data="out/teacher-logits", student="out/intermediate/model")


def test_quickstart_makes_a_student_of_half_the_layers(quickstart: recipes.Recipe, tiny_bert: str) -> None:
    found = stages(quickstart)
    has(found["intermediate"], student_layers=(1,), teacher="@teacher/model")
    has(found["teacher"], student=tiny_bert, objective="labels")


def test_reference_to_no_earlier_stage_is_refused() -> None:
    windows = ("windows", TeacherLogitsConfig(data="@augmented", tokenizer="t"))
    augmented = ("augmented", AugmentConfig(data="d", embeddings="e"))
    recipes.Recipe(name="right", stages=(augmented, windows))
    with pytest.raises(InputError, match=r"recipe wrong: stage windows reads @augmented, which no earlier"):
        recipes.Recipe(name="wrong", stages=(windows, augmented))


def test_fingerprint_is_stable_and_tells_every_number() -> None:
    config = stages(recipes.tinyroberta())["student"]
    again = stages(recipes.tinyroberta())["student"]
    assert runs.fingerprint(config) == runs.fingerprint(again)
    changes: list[dict[str, Any]] = [
        {"learning_rate": 3.1e-5},
        {"epochs": 5},
        {"seed": 43},
        {"temperature": 1.0},
        {"student_layers": (0, 1)},
    ]
    others = {runs.fingerprint(replace(config, **change)) for change in changes}
    assert len(others | {runs.fingerprint(config)}) == len(changes) + 1
    assert runs.fingerprint(replace(config, workers=2, threads=3, use_gpu=False)) == runs.fingerprint(config)
