from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from tinyqa_ray.core import html
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate.page import EvaluationReport, Example, evaluation_html
from tinyqa_ray.evaluate.plots import LENGTH_BINS, f1_by_length, threshold_curve

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Page(HTMLParser):
    """Reads a page, fails on unbalanced tags, and keeps what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)

    def text(self, tag: str) -> str:
        return "".join(self.texts.get(tag, []))

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


CONTEXT = 'Ada & Charles wrote <script>alert("x")</script> in 1843.'
RIGHT = Example(
    question="Who wrote <script>?",
    context=CONTEXT,
    gold="Ada & Charles",
    predicted="Ada & Charles",
    start=0,
    end=13,
    na_prob=0.01,
    f1=1.0,
)
WRONG = Example(
    question="Who read it?",
    context="Nobody.",
    gold=None,
    predicted="Nobody",
    start=0,
    end=6,
    na_prob=0.3,
    f1=0.0,
)
ABSTAINED = Example(
    question="When?", context=CONTEXT, gold="1843", predicted=None, start=0, end=0, na_prob=0.9, f1=0.0
)


def report(n: int = 40, kind: str = "mixed", **changes: Any) -> EvaluationReport:
    rng = np.random.default_rng(3)
    mixed = rng.random(n) < 0.5
    answerable = {"mixed": mixed, "answerable": np.ones(n, bool), "none": np.zeros(n, bool)}[kind]
    values: dict[str, Any] = {
        "title": "student on <dev>.json",
        "facts": (("model", "a & b"), ("windows", "384 tokens")),
        "metrics": (("F1", "71.2", "mean over <all> questions"),),
        "na_probs": rng.random(n),
        "f1": np.where(answerable, rng.random(n), 0.0),
        "answerable": answerable,
        "answer_tokens": np.where(answerable, rng.integers(1, 15, n), 0),
        "threshold": 0.42,
        "scores": rng.random(n),
        "right": rng.random(n),
        "examples": (RIGHT, WRONG, ABSTAINED),
    }
    return EvaluationReport(**(values | changes))


@pytest.fixture(scope="module")
def text() -> str:
    return evaluation_html(report())


def test_page_is_balanced_and_has_four_captioned_plots(text: str) -> None:
    page = Page(text)
    assert page.tags.count("svg") == page.tags.count("figcaption") == 4
    assert page.text("title") == page.text("h1") == "student on <dev>.json"


def test_page_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    for name in ("src", "href", "xlink:href", "srcset", "data"):
        assert all(value.startswith("#") for value in page.values(name))
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)


def test_page_has_a_dark_scheme_and_fits_a_phone(text: str) -> None:
    assert "@media (prefers-color-scheme: dark)" in text
    assert "width=device-width, initial-scale=1" in Page(text).values("content")


def test_plots_take_their_colours_from_the_scheme(text: str) -> None:
    styles = " ".join(re.findall(r'style="([^"]*)"', text))
    assert "var(--ink, #1c2430)" in styles
    assert re.findall(r": #[0-9a-f]{6}", styles) == []


def test_markup_in_questions_and_passages_is_shown_as_text(text: str) -> None:
    assert "<script" not in text
    page = Page(text)
    assert "Who wrote <script>?" in page.text("h3")
    assert CONTEXT in page.text("p")


def test_metrics_facts_and_gold_answers_are_shown(text: str) -> None:
    page = Page(text)
    for shown in ("71.2", "mean over <all> questions", "Gold: 1843", "Predicted: no answer"):
        assert shown in page.text("p")
    assert "a & b" in page.text("td")


def test_right_and_wrong_answers_are_grouped(text: str) -> None:
    assert Page(text).text("h2") == "PlotsSetupRightWrong or partly right"
    assert Page(evaluation_html(report(examples=(WRONG,)))).text("h2") == "PlotsSetupWrong or partly right"


def test_predicted_span_alone_is_marked(text: str) -> None:
    assert Page(text).texts["mark"] == ["Ada & Charles", "Nobody"]


def test_ids_are_unique_and_every_reference_resolves(text: str) -> None:
    ids = Page(text).values("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert references
    assert {a or b for a, b in references} <= set(ids)


def test_same_report_gives_same_bytes(text: str) -> None:
    assert evaluation_html(report()) == text


@pytest.mark.parametrize(
    ("n", "kind", "said"),
    [
        (9, "answerable", "No unanswerable questions"),
        (9, "none", "No answerable questions"),
        (0, "mixed", "No questions"),
        (1, "answerable", "No unanswerable questions"),
    ],
)
def test_plot_says_which_split_is_empty(n: int, kind: str, said: str) -> None:
    text = evaluation_html(report(n, kind, examples=()))
    assert said in Page(text).text("svg")
    assert not re.search(r"\bnan\b", text)


def test_arrays_of_unequal_length_are_refused() -> None:
    with pytest.raises(InputError, match=r"na_probs \(40,\), f1 \(39,\)"):
        report(f1=np.zeros(39))
    with pytest.raises(InputError, match=r"scores \(40,\), right \(39,\)"):
        report(right=np.zeros(39))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("f1", np.full(40, 71.2)),
        ("na_probs", np.full(40, np.nan)),
        ("threshold", -1.0),
        ("scores", np.full(40, 2.0)),
    ],
)
def test_values_that_are_no_fractions_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name} of a report"):
        report(**{name: value})


questions = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), st.floats(0, 1), st.booleans()), max_size=30
)


@given(questions, st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 1.0]), max_size=5))
@settings(deadline=None)
def test_threshold_curve_equals_scoring_each_question_alone(
    rows: list[tuple[float, float, bool]], thresholds: list[float]
) -> None:
    curve = threshold_curve(
        np.array([row[0] for row in rows], dtype=float),
        np.array([row[1] for row in rows], dtype=float),
        np.array([row[2] for row in rows], dtype=bool),
        np.array(thresholds, dtype=float),
    )
    for i, threshold in enumerate(thresholds):
        scores = [
            (has_answer, (0.0 if has_answer else 1.0) if na_prob > threshold else f1)
            for na_prob, f1, has_answer in rows
        ]
        for values, kept in (
            (curve.overall, {True, False}),
            (curve.answerable, {True}),
            (curve.unanswerable, {False}),
        ):
            split = [score for has_answer, score in scores if has_answer in kept]
            expected = sum(split) / len(split) if split else np.nan
            np.testing.assert_allclose(values[i], expected, atol=1e-12)


def test_a_probability_equal_to_the_threshold_is_answered() -> None:
    curve = threshold_curve(np.array([0.5]), np.array([0.8]), np.array([True]), np.array([0.49, 0.5]))
    assert curve.overall.tolist() == [0.0, 0.8]


def test_f1_is_averaged_by_words_of_the_answer() -> None:
    tokens = np.array([0, 1, 2, 3, 4, 5, 6, 9, 10, 99])
    f1 = np.array([0.0, 1.0, 0.2, 0.3, 0.4, 0.6, 0.1, 0.3, 1.0, 0.0])
    counts, means = f1_by_length(f1, tokens)
    assert dict(zip(LENGTH_BINS, counts.tolist(), strict=True)) == {
        "1": 2,
        "2": 1,
        "3": 1,
        "4-5": 2,
        "6-9": 2,
        "10+": 2,
    }
    np.testing.assert_allclose(means, [0.5, 0.2, 0.3, 0.5, 0.2, 0.5])


def test_a_length_without_questions_has_no_mean() -> None:
    counts, means = f1_by_length(np.array([1.0]), np.array([3]))
    assert counts.tolist() == [0, 0, 1, 0, 0, 0]
    assert np.isnan(means[[0, 1, 3, 4, 5]]).all()


@given(st.text(alphabet="ab<>&\"' é\n", max_size=20), st.integers(0, 20), st.integers(0, 20))
@settings(deadline=None)
def test_marking_keeps_the_passage_and_marks_exactly_the_span(context: str, a: int, b: int) -> None:
    start, end = sorted((min(a, len(context)), min(b, len(context))))
    page = Page(f"<p>{html.marked(context, start, end)}</p>")
    assert page.text("p") == context
    assert page.text("mark") == context[start:end]
    assert set(page.tags) <= {"p", "mark"}


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 6)])
def test_a_span_outside_the_passage_is_refused(start: int, end: int) -> None:
    with pytest.raises(InputError, match="context of 5 characters"):
        html.marked("abcde", start, end)


def test_table_escapes_cells_and_names_its_columns() -> None:
    page = Page(html.table([("a<b", "1"), ("c", "2 & 3")], header=("file", "words")))
    assert page.text("th") == "filewordsa<bc"
    assert page.text("td") == "12 & 3"
    assert page.values("scope") == ["col", "col", "row", "row"]


def test_ragged_tables_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[1, 2\] cells"):
        html.table([("a", "b"), ("c",)])
    with pytest.raises(InputError, match=r"\[1, 2\] cells"):
        html.table([("a", "b")], header=("name",))


def test_an_empty_table_is_no_error() -> None:
    assert "tr" not in Page(html.table([])).tags


def test_two_different_figures_share_no_id() -> None:
    drawings = []
    for values in ([1, 2], [2, 1]):
        with html.plot_style():
            figure = Figure()
            figure.add_subplot().plot(values, color=html.BLUE, label="<cost> in $ and $")
        drawings.append(html.figure_svg(figure, 'cost "a"'))
    first, second = (set(Page(drawing).values("id")) for drawing in drawings)
    assert first
    assert not first & second
    assert Page(drawings[0]).values("aria-label") == ['cost "a"']
