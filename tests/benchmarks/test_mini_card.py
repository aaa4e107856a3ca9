"""The card of the package's model gets its tables from the figures of benchmarks/mini.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def mini_card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import mini_card

    yield mini_card
    del sys.modules["mini_card"]


def place(name: str) -> str:
    return f"<!-- figures: {name} -->\nstale\n<!-- end -->\n"


CARD = "By hand.\n" + "".join(map(place, ("dev", "kept", "scale", "failures", "elsewhere-1")))


@pytest.fixture
def made(mini_card: Any) -> dict[str, Any]:
    row = dict.fromkeys(mini_card._COLUMNS, 50.0)
    scale = {"score_shift": 4.0, "temperature": 5.0, "no_answer_threshold": 0.01, "always_abstain": 51.9}
    figures = {name: {**row, **scale} for name in ("teacher", "student")}
    figures["student"]["forced_f1"] = 82.94
    example = {"question": "Who?", "gold": "Ada | Byron", "predicted": None, "na_prob": 0.9}
    return {
        "figures": figures,
        "elsewhere": {"elsewhere-1": {"student": {"f1": 61.5}}},
        "kept": {"f1": 95.0, "best_f1": 96.0, "forced_f1": 94.0},
        "questions_per_s": {"student": 30.1, "teacher": 4.2},
        "speed_of_student_to_teacher": 7.2,
        "speed_of_int8_student_to_teacher": 25.0,
        "failures": {"no answer where there is one": {"questions": 3, "surest": [example]}},
    }


def test_tables_are_made_of_the_figures_and_the_rest_stays(mini_card: Any, made: dict[str, Any]) -> None:
    card = mini_card.filled(CARD, mini_card.tables_of(made))
    assert card.startswith("By hand.\n")
    assert "stale" not in card
    assert "| **tinyqa-mini** | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 82.9 | 50.0 | 50.0 | 30.1 |" in card
    assert "|  | F1 |\n| --- | --- |\n| **tinyqa-mini** | 61.5 |" in card, (
        "figures that other data has not are left out"
    )
    assert "keeps 94.0 % of its teacher's forced F1" in card
    assert "says that there is no answer | 3 | Who? | – | Ada \\| Byron |" in card
    assert mini_card.filled(card, mini_card.tables_of(made)) == card, "again, it is the same"


def test_card_shows_the_figures_that_were_measured(mini_card: Any) -> None:
    card = mini_card.CARD.read_text(encoding="utf-8")
    assert mini_card.filled(card, mini_card.tables()) == card


def test_figures_without_a_place_in_the_card_are_seen(mini_card: Any, made: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="0 places for elsewhere-1"):
        mini_card.filled(CARD.replace("elsewhere-1", "nowhere"), mini_card.tables_of(made))
