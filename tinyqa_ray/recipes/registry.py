"""All recipes, by the names that ``--recipe`` takes."""

from __future__ import annotations

from collections.abc import Callable

from tinyqa_ray.recipes.mini import mini
from tinyqa_ray.recipes.published import tinybert, tinyroberta
from tinyqa_ray.recipes.quickstart import quickstart
from tinyqa_ray.recipes.recipe import Recipe

RECIPES: dict[str, Callable[..., Recipe]] = {
    "tinyroberta": tinyroberta,
    "tinybert": tinybert,
    "quickstart": quickstart,
    "mini": mini,
}
