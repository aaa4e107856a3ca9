"""The tables of docs/fidelity.md say what the recipes do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core import stage_folder
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe

PAGE = Path(__file__).parents[2] / "docs" / "fidelity.md"
RESULTS = PAGE.parents[1] / "benchmarks" / "results" / "fidelity.json"
RECIPES = {"tinyroberta": published.tinyroberta(), "tinybert": published.tinybert()}
BOTH = "Both"
ELSEWHERE = {"data", "student", "objective", "objective_weights", "dev", "masked_lm", "embeddings"}
"""Fields that say on what a stage works, which the recipe's own description does."""


def sections() -> dict[str, list[list[str]]]:
    """The rows of each section's table, but for its heading."""
    found: dict[str, list[list[str]]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line.removeprefix("## "), [])
        elif line.startswith("|") and not line.startswith(("|--", "| field")):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def rows_of(recipe: str) -> dict[str, str]:
    """The column "ours" by field (``stage.field``), for one recipe."""
    rows = [row for section in (recipe, BOTH) for row in sections()[section]]
    return {row[0].strip("`"): row[3].strip("`") for row in rows if row[0].startswith("`")}


def value_of(recipe: Recipe, path: str) -> Any:
    stage, *fields = path.split(".")
    value: Any = dict(recipe.stages)[stage]
    for field in fields:
        value = getattr(value, field)
    return value


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_page_calls_ours_is_in_the_recipe(name: str) -> None:
    for path, ours in rows_of(name).items():
        value = value_of(RECIPES[name], path)
        if "float" in str(type(value)) or isinstance(value, int):
            assert float(ours) == value, path
        else:
            assert ours == (" ".join(value) if isinstance(value, tuple) else value), path


@pytest.mark.parametrize("name", RECIPES)
def test_every_choice_of_a_recipe_that_decides_a_result_is_on_the_page(name: str) -> None:
    on_page = rows_of(name).keys()
    for stage in ("augmented", "intermediate", "student"):
        config = dict(RECIPES[name].stages)[stage]
        counted = stage_folder.identity_fields(config)
        for field in dataclasses.fields(config):
            chosen = field.name in counted and getattr(config, field.name) != field.default
            if chosen and field.name not in ELSEWHERE:
                assert f"{stage}.{field.name}" in on_page


def test_every_row_has_a_reason_where_the_recipe_differs_from_card_or_haystack() -> None:
    for name in (*RECIPES, BOTH):
        for field, card, haystack, ours, why in sections()[name]:
            others = {each.strip("`").partition(" (")[0] for each in (card, haystack)} - {"–"}
            equal = any(same(other, ours.strip("`")) for other in others)
            differs = bool(others) and not equal
            assert why or not differs, field


def same(other: str, ours: str) -> bool:
    try:
        return float(other.split(" × ")[0].split(" of ")[0]) == float(ours)
    except ValueError:
        return other == ours


def test_gains_on_the_page_are_those_of_the_benchmark() -> None:
    measured = json.loads(RESULTS.read_text(encoding="utf-8"))["gain_of_the_recipes_over"]
    rows = sections()["What the choices bring"][1:]
    assert [row[0] for row in rows] == list(measured)
    for name, forced_f1, kl in rows:
        assert forced_f1 == f"{measured[name]['forced_f1']['mean']:+.2f}"
        assert kl == f"{measured[name]['kl_to_teacher']['mean']:+.3f}"
