from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.distill.page import (
    ModelFigures,
    TrainingPage,
    comparison,
    percent,
    smoothed,
    thinned,
    training_html,
)

STUDENT = ModelFigures(name="student", figures={"f1": 72.0, "exact": 69.0, "best_f1": None}, parameters=1200)
TEACHER = ModelFigures(
    name="big <one>", figures={"f1": 80.0, "exact": 77.25}, parameters=None, role="teacher"
)
BASELINE = ModelFigures(name="labels only", figures={"f1": nan}, parameters=1200, role="baseline")


def rows(count: int) -> list[dict[str, float]]:
    return [
        {
            "step": 5 * i,
            "steps": 5 * count,
            "loss": 3.0 / i + 1.0,
            "attention": 2.0 / i,
            "hidden": 1.0 / i + 1.0,
            "grad_norm": inf if i == 1 else 1.0,
            "learning_rate": 3e-5,
            "samples_per_s": 50.0,
            "tokens_per_s": 9000.0,
        }
        for i in range(1, count + 1)
    ]


PAGE = TrainingPage(
    title="Training of <student>",
    facts=(("objective", "intermediate"), ("data", "a & b")),
    rows=rows(40),
    dev=[
        {"step": 100, "f1": 60.0, "exact": 55.0, "best_f1": 61.0, "has_ans_f1": None, "questions": 300},
        {"step": 200, "f1": 70.0, "exact": nan, "best_f1": 71.0, "has_ans_f1": None, "questions": 300},
    ],
    models=(STUDENT, TEACHER, BASELINE),
)


class Shown(HTMLParser):
    """Reads a page, fails on unbalanced tags, keeps texts and the labels of drawings."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.labels: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name == "aria-label":
                self.labels.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and data.strip():
            self.texts.append(data.strip())


def test_page_draws_each_loss_term_and_the_rest() -> None:
    shown = Shown(training_html(PAGE))
    assert shown.labels == [
        "Total loss over steps",
        "Attention loss over steps",
        "Hidden loss over steps",
        "Learning rate over steps",
        "Grad norm over steps",
        "Tokens/s over steps",
        "F1, EM, Best F1 on dev over steps",
    ]


def test_page_names_models_facts_and_what_is_kept_of_the_teacher() -> None:
    shown = Shown(training_html(PAGE)).texts
    for text in ("Training of <student>", "a & b", "big <one>", "90.0 %", "77.2", "1,200", "F1 of big <one>"):
        assert text in shown


def test_page_loads_nothing_and_runs_nothing() -> None:
    text = training_html(PAGE)
    assert Shown(text).links == []
    assert "<script" not in text
    assert not re.search(r"url\((?!#)", text)


def test_equal_input_gives_equal_text() -> None:
    assert training_html(PAGE) == training_html(replace(PAGE, rows=list(PAGE.rows)))


def test_no_missing_figure_is_shown_as_a_number() -> None:
    broken = [{**row, "loss": nan, "tokens_per_s": -inf} for row in rows(3)]
    texts = Shown(training_html(replace(PAGE, rows=broken))).texts
    assert not [text for text in texts if re.search(r"\b([Nn]a[Nn]|inf|None)\b", text)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_short_run_without_dev_or_models_has_a_page(count: int) -> None:
    shown = Shown(training_html(TrainingPage(title="t", facts=(), rows=rows(count))))
    assert ("Total loss over steps" in shown.labels) == (count > 0)
    assert "Models on dev" not in shown.texts


def test_run_of_one_term_draws_it_once() -> None:
    one = [{"step": 5, "steps": 5, "loss": 2.0, "label": 2.0}]
    shown = Shown(training_html(TrainingPage(title="t", facts=(), rows=one)))
    assert shown.labels == ["Label loss over steps"]


def test_long_run_stays_a_small_page() -> None:
    assert len(training_html(replace(PAGE, rows=rows(20_000)))) < 400_000


def test_later_row_of_a_step_counts() -> None:
    early, late = rows(4), rows(4)
    again = [{**row, "tokens_per_s": 1.0} for row in early] + late
    assert training_html(replace(PAGE, rows=again)) == training_html(replace(PAGE, rows=late))


def test_f1_kept_is_of_the_best_teacher() -> None:
    weak = replace(TEACHER, name="weak", figures={"f1": 40.0})
    header, *table = comparison((STUDENT, weak, TEACHER, BASELINE))
    kept = {row[0]: row[header.index("F1 kept")] for row in table}
    assert kept == {"student": "90.0 %", "weak": "50.0 %", "big <one>": "100.0 %", "labels only": "–"}


def test_columns_that_nobody_has_are_left_out() -> None:
    assert comparison((STUDENT,))[0] == ["Model", "EM", "F1", "Parameters"]
    assert comparison((BASELINE,)) == [["Model", "Parameters"], ["labels only", "1,200"]]


@settings(deadline=None)
@given(st.one_of(st.none(), st.floats()))
def test_figure_is_a_number_or_a_dash(value: float | None) -> None:
    assert re.fullmatch(r"-?\d+\.\d|–", percent(value))


values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200).map(np.array)


@settings(deadline=None)
@given(values, st.integers(1, 99))
def test_smoothed_line_stays_within_its_values(found: np.ndarray, span: int) -> None:
    line = smoothed(found, span)
    assert line.shape == found.shape
    assert found.min() - 1e-3 <= line.min()
    assert line.max() <= found.max() + 1e-3


def test_smoothed_line_does_not_lag() -> None:
    falling = np.linspace(9.0, 1.0, 101)
    assert smoothed(falling, 21)[10:-10] == pytest.approx(falling[10:-10])


@settings(deadline=None)
@given(values, st.integers(2, 50))
def test_thinned_line_keeps_ends_and_extremes(found: np.ndarray, points: int) -> None:
    steps, kept = thinned(np.arange(len(found)), found, points)
    assert (kept == found[steps]).all()
    assert (np.diff(steps) > 0).all()
    assert (steps[0], steps[-1]) == (0, len(found) - 1)
    assert {found.min(), found.max()} <= set(kept)
    assert len(kept) <= points + 2
