"""The table of docs/models.md says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.encoders import supported_families
from tinyqa_ray.models import families

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NOT_CONVERTED = ("longformer",)
"""Families that OpenVINO cannot convert, see tests/export/test_family_exports.py."""


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
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
    assert set(supported_families()) <= {row[0].strip("`") for row in rows()}
