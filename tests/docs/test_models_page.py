"""The table of docs/models.md says what the code does."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from transformers import AutoConfig

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.names import full_id, hub_id
from tinyqa_ray.distill.encoders import supported_families
from tinyqa_ray.models import families
from tinyqa_ray.recipes import published

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NOT_CONVERTED = ("longformer",)
"""Families that OpenVINO cannot convert, see tests/export/test_family_exports.py."""


def rows(*, of_ids: bool) -> list[list[str]]:
    """The rows of the table of published ids, or of that of families."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if ("/" in row[0]) == of_ids]


@pytest.mark.parametrize("row", rows(of_ids=False), ids=lambda row: row[0])
def test_table_of_families_is_true(row: list[str]) -> None:
    family, read, padded, exported, layers = row[0].strip("`"), *row[1:5]
    config = AutoConfig.for_model(family)
    try:
        families.refuse_unreadable(family, config)
    except InputError:
        assert (read, padded, exported, layers) == ("no", "", "", "")
        return
    assert read == "yes"
    assert padded == ("yes" if families.can_be_padded(config) else "by length")
    converts = families.can_be_padded(config) and family not in NOT_CONVERTED
    assert exported == ("yes" if converts else "no")
    assert layers == ("yes" if family in supported_families() else "no")


def test_every_family_whose_layers_are_taught_is_in_the_table() -> None:
    assert set(supported_families()) <= {row[0].strip("`") for row in rows(of_ids=False)}


def test_every_published_id_of_a_recipe_is_in_the_table_in_full() -> None:
    named = set()
    for make in (published.tinyroberta, published.tinybert):
        for _, config in make(general="texts.txt").stages:
            for field in dataclasses.fields(config):
                value = getattr(config, field.name)
                for each in value if isinstance(value, tuple) else (value,):
                    if isinstance(each, str) and not each.startswith("@") and (found := hub_id(each)):
                        named.add(found[0])
    ids = {name for name in named if "/" in name}
    assert ids == {row[0].strip("`") for row in rows(of_ids=True)}
    assert not {full_id(name) for name in named} - named, "an id without its owner"


def test_page_says_how_to_read_the_ids_that_have_pickles_only() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, *_, safetensors, _ in rows(of_ids=True):
        if safetensors.startswith("no ("):
            assert f"tinyqa convert --model {name.strip('`')}" in page
