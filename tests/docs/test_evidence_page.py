"""The tables of docs/evidence.md show the figures of benchmarks/results/evidence.json."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pages
import pytest

from tinyqa_ray.answer import rows
from tinyqa_ray.integrations import evidence
from tinyqa_ray.reader import Place
from tinyqa_ray.serve import schemas

PAGE = (pages.ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
FIGURES: Any = json.loads(
    (pages.ROOT / "benchmarks" / "results" / "evidence.json").read_text(encoding="utf-8")
)
RULES = {
    "best place against no answer alone": "best place, alone",
    "the same, if no better answer is right": "best place, in turn",
    "any place, if no better answer is right (noisy-or)": "any place, in turn",
    "share of odds, best place alone": "share of odds, best place",
    "share of odds, root of squares": "share of odds, root of squares",
    "share of odds, added": "share of odds, added",
}


def row(start: str) -> list[float]:
    (line,) = (line for line in PAGE.replace("**", "").splitlines() if line.startswith(f"| {start} |"))
    return [float(each) for cell in line.strip("|").split("|")[1:] for each in cell.split("/")]


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("right (F1)", "right"),
        ("calibration error, each against no answer alone", "against_no_answer_alone"),
        ("calibration error, by the rule above", "chances"),
    ],
)
def test_figures_by_rank_are_those_measured(start: str, name: str) -> None:
    assert row(start) == FIGURES["ranks"][name]


@pytest.mark.parametrize(("start", "name"), RULES.items())
def test_figures_of_a_rule_are_those_measured(start: str, name: str) -> None:
    by_data = {each["data"]: each["rules"][name] for each in FIGURES["evidence"]}
    chosen, measured = by_data["all that choose"], by_data["dev.json"]
    errors = [
        chosen["all"]["calibration_error"],
        chosen["first"]["calibration_error"],
        measured["all"]["calibration_error"],
    ]
    assert row(start) == pytest.approx([*errors, chosen["all"]["brier"], measured["all"]["brier"]], abs=6e-4)


def test_fields_of_a_place_are_those_of_each_way_in() -> None:
    table = PAGE.partition("A place has these fields")[2].partition("\n\nThe score")[0]
    columns = zip(*(line.strip("|").split("|")[1:] for line in table.splitlines()[4:]), strict=True)
    python, http, mcp = (
        [name for cell in column for name in re.findall(r"`(\w+)`", cell)] for column in columns
    )
    assert set(python) == {field.name for field in dataclasses.fields(Place)}
    assert set(python) == {field.name for field in rows.PLACES.type.value_type}
    assert set(http) == set(schemas.Place.model_fields)
    assert set(mcp) == set(evidence.Place.model_fields)
