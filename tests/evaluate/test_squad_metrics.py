from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import normalised
from tinyqa_ray.evaluate import measure, score_files, squad_metrics
from tinyqa_ray.evaluate.squad_metrics import per_question

REPOSITORY = Path(__file__).resolve().parents[2]
KEPT = REPOSITORY / "tests" / "golden" / "squad2_metrics"
SHARED = REPOSITORY.parent / "shared" / "golden" / "squad2_metrics"
SETTINGS = {"plain": (False, 1.0), "na_probs": (True, 1.0), "na_probs_threshold_0.4": (True, 0.4)}

words = st.lists(st.sampled_from(["the", "a", "An", "cat", "Cat", "sat.", "on", "mat", "!", "é"]), max_size=6)
texts = words.map(" ".join)
ascii_texts = st.text(st.characters(max_codepoint=127))
probabilities = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1, allow_subnormal=False))
questions = st.lists(st.tuples(st.lists(texts, max_size=3), texts, probabilities), min_size=1, max_size=12)

Rows = list[tuple[list[str], str, float]]


def split(rows: Rows) -> tuple[dict[str, list[str]], dict[str, str], dict[str, float]]:
    ids = [f"q{i}" for i in range(len(rows))]
    return (
        {i: row[0] for i, row in zip(ids, rows, strict=True)},
        {i: row[1] for i, row in zip(ids, rows, strict=True)},
        {i: row[2] for i, row in zip(ids, rows, strict=True)},
    )


def best_threshold(rows: Rows) -> float:
    gold, predictions, na_probs = split(rows)
    return squad_metrics.best_threshold(per_question(gold, predictions), na_probs)


def slow_f1_at(rows: Rows, threshold: float) -> float:
    total = 0.0
    for golds, prediction, na_prob in rows:
        if na_prob > threshold:
            total += not golds
        else:
            kept = [gold for gold in golds if normalised.normalize_answer(gold)] or [""]
            total += max(squad_metrics.f1(gold, prediction) for gold in kept)
    return 100 * total / len(rows)


def squad(*qas: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "c", "qas": list(qas)}]}]}


def qa(question_id: str, *answers: str) -> dict[str, Any]:
    return {"id": question_id, "question": "?", "answers": [{"text": text} for text in answers]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    def to_file(name: str, value: Any) -> str:
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return str(path)

    return to_file


def assert_official(case: Path, setting: str) -> None:
    with_na_probs, threshold = SETTINGS[setting]
    expected = json.loads((case / "expected.json").read_text(encoding="utf-8"))[setting]
    na_probs = str(case / "na_probs.json") if with_na_probs else None
    result = score_files.score_files(
        str(case / "gold.json"), str(case / "predictions.json"), na_probs, threshold
    )
    assert list(result) == list(expected)
    assert result == pytest.approx(expected, rel=0, abs=1e-9)


@pytest.mark.parametrize("setting", SETTINGS)
def test_official_scores_are_reproduced(setting: str) -> None:
    assert_official(KEPT / "case_1", setting)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the full golden cases are not next to this checkout")
def test_official_scores_are_reproduced_in_every_shared_case() -> None:
    cases = sorted(SHARED.glob("case_*"))
    assert cases
    for case in cases:
        for setting in SETTINGS:
            assert_official(case, setting)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  well-known\tAnt,", "wellknown ant"),
        ("1894\u20131895", "1894\u20131895"),
        ("A.N. Other", "other"),
        ("theatre", "theatre"),
        ("the", ""),
    ],
)
def test_normalisation_follows_the_official_rules(text: str, normal: str) -> None:
    assert normalised.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("gold", "predicted", "expected"),
    [
        ("big cat", "cat", 2 / 3),
        ("cat cat dog", "cat cat cat cat", 4 / 7),
        ("", "the", 1.0),
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("cat", "dog", 0.0),
    ],
)
def test_f1_counts_tokens_as_often_as_both_have_them(gold: str, predicted: str, expected: float) -> None:
    assert squad_metrics.f1(gold, predicted) == pytest.approx(expected)


def test_the_best_of_several_answers_counts() -> None:
    result = squad_metrics.score(per_question({"q": ["a dog", "cats"]}, {"q": "The Cats!"}))
    assert (result["exact"], result["f1"]) == (100, 100)


def test_a_split_without_questions_has_no_keys() -> None:
    assert list(squad_metrics.score(per_question({"q": []}, {"q": ""}))) == [
        "exact", "f1", "total", "NoAns_exact", "NoAns_f1", "NoAns_total",
    ]  # fmt: skip


def test_no_answer_threshold_is_strict_and_rewards_only_unanswerable_questions() -> None:
    gold, predictions = {"has": ["cat"], "no": []}, {"has": "cat", "no": "dog"}
    at_threshold = squad_metrics.score(per_question(gold, predictions), {"has": 0.5, "no": 0.5}, 0.5)
    above = squad_metrics.score(per_question(gold, predictions), {"has": 0.6, "no": 0.6}, 0.5)
    assert (at_threshold["HasAns_f1"], at_threshold["NoAns_f1"]) == (100, 0)
    assert (above["HasAns_f1"], above["NoAns_f1"]) == (0, 100)


def test_official_search_stops_inside_a_tie_and_best_threshold_does_not() -> None:
    gold, predictions = {"has": ["cat"], "no": []}, {"has": "cat", "no": "dog"}
    na_probs = {"has": 0.5, "no": 0.5}
    assert squad_metrics.score(per_question(gold, predictions), na_probs)["best_f1"] == 100
    threshold = squad_metrics.best_threshold(per_question(gold, predictions), na_probs)
    assert squad_metrics.summarize(per_question(gold, predictions), na_probs, threshold).f1 == 50


def test_official_search_reports_threshold_0_where_abstaining_always_is_best() -> None:
    result = squad_metrics.score(per_question({"q": []}, {"q": "cat"}), {"q": 0.3})
    assert (result["best_f1"], result["best_f1_thresh"]) == (100, 0)


def test_predictions_and_na_probs_of_other_questions_are_ignored() -> None:
    gold, predictions, na_probs = {"q": ["cat"]}, {"q": "cat"}, {"q": 0.1}
    more = squad_metrics.score(per_question(gold, {**predictions, "other": "x"}), {"other": 0.0, **na_probs})
    assert more == squad_metrics.score(per_question(gold, predictions), na_probs)


@settings(deadline=None)
@given(texts, texts)
def test_f1_is_symmetric_and_between_0_and_1(left: str, right: str) -> None:
    assert squad_metrics.f1(left, right) == squad_metrics.f1(right, left)
    assert 0 <= squad_metrics.f1(left, right) <= 1


@settings(deadline=None)
@given(st.one_of(texts, st.text()), st.one_of(texts, st.text()))
@example("The cat", "cat!")
def test_exact_match_means_f1_of_1(left: str, right: str) -> None:
    assert squad_metrics.exact_match(left, left) == squad_metrics.f1(left, left) == 1
    if squad_metrics.exact_match(left, right):
        assert squad_metrics.f1(left, right) == 1


@settings(deadline=None)
@given(ascii_texts, st.data())
def test_punctuation_articles_and_case_do_not_matter(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(text)))
    mark = data.draw(st.sampled_from(string.punctuation))
    article = data.draw(st.sampled_from(["a ", "An ", "THE "]))
    for changed in (text[:at] + mark + text[at:], article + text, text.upper(), text.lower(), f" {text}\n"):
        assert squad_metrics.exact_match(text, changed) == 1


@settings(deadline=None)
@given(questions, st.data())
def test_predicting_an_acceptable_answer_scores_100(rows: Rows, data: st.DataObject) -> None:
    gold, _, _ = split(rows)
    predictions = {}
    for question_id, golds in gold.items():
        kept = [text for text in golds if normalised.normalize_answer(text)] or [""]
        predictions[question_id] = data.draw(st.sampled_from(kept))
    result = squad_metrics.score(per_question(gold, predictions))
    assert result["exact"] == result["f1"] == 100


@settings(deadline=None)
@given(questions, st.randoms(use_true_random=False))
def test_order_of_questions_does_not_matter(rows: Rows, rng: random.Random) -> None:
    gold, predictions, na_probs = split(rows)
    shuffled = {i: gold[i] for i in rng.sample(sorted(gold), len(gold))}
    other_predictions = {i: predictions[i] for i in rng.sample(sorted(gold), len(gold))}
    other_na_probs = {i: na_probs[i] for i in rng.sample(sorted(gold), len(gold))}
    assert squad_metrics.score(per_question(shuffled, other_predictions), na_probs, 0.4) == pytest.approx(
        squad_metrics.score(per_question(gold, predictions), na_probs, 0.4)
    )
    assert squad_metrics.best_threshold(
        per_question(shuffled, other_predictions), other_na_probs
    ) == squad_metrics.best_threshold(per_question(gold, predictions), na_probs)


@settings(deadline=None)
@given(questions)
@example([([], "cat", 0.5), (["cat"], "cat", float(np.nextafter(0.5, 0)))])
@example([([], "cat", 0.0)])
@example([([], "cat", 1.0)])
@example([(["cat"], "cat", 1.0)])
@example([([], "the", 0.5), (["cat"], "dog", 0.2)])
def test_no_threshold_beats_best_threshold(rows: Rows) -> None:
    best = best_threshold(rows)
    assert 0 <= best <= 1
    grid = {*np.linspace(0, 1, 201), *(row[2] for row in rows)}
    assert slow_f1_at(rows, best) >= max(slow_f1_at(rows, threshold) for threshold in grid) - 1e-7


@settings(deadline=None)
@given(questions, probabilities)
def test_summary_reports_the_f1_at_the_threshold(rows: Rows, threshold: float) -> None:
    gold, predictions, na_probs = split(rows)
    summary = squad_metrics.summarize(per_question(gold, predictions), na_probs, threshold)
    assert summary.f1 == pytest.approx(slow_f1_at(rows, threshold))
    official = squad_metrics.score(per_question(gold, predictions), na_probs, threshold)
    assert summary.exact == official["exact"]
    assert summary.has_ans_exact == official.get("HasAns_exact")
    assert summary.has_ans_f1 == official.get("HasAns_f1")
    assert summary.no_ans_f1 == official.get("NoAns_f1")
    assert summary.forced_f1 == squad_metrics.score(per_question(gold, predictions)).get("HasAns_f1")


def test_best_threshold_lies_midway_between_the_questions_it_separates() -> None:
    rows = [(["cat"], "cat", 0.2), ([], "dog", 0.6), ([], "dog", 0.9)]
    assert best_threshold(rows) == pytest.approx(0.4)


def test_best_threshold_abstains_always_or_never_where_that_is_best() -> None:
    assert squad_metrics.best_threshold(per_question({"q": []}, {"q": "cat"}), {"q": 0.3}) == 0
    assert squad_metrics.best_threshold(per_question({"q": ["cat"]}, {"q": "cat"}), {"q": 0.3}) == 1


def test_of_equally_good_thresholds_the_one_that_answers_most_is_taken() -> None:
    rows = [(["cat"], "cat", 0.1), (["cat"], "dog", 0.5), ([], "dog", 0.9)]
    assert best_threshold(rows) == pytest.approx(0.7)


def test_thresholds_that_differ_only_by_rounding_errors_count_as_equally_good() -> None:
    quarter, three_quarters = ["x"], ["x y z"]
    rows = [([], "x", 0.1), (quarter, "x 1 2 3 4 5 6", 0.2), (three_quarters, "x y z 1 2", 0.3)]
    assert best_threshold(rows) == 1


def test_equal_na_probs_do_not_make_the_best_threshold_abstain_on_good_answers() -> None:
    rows = [(["cat"], "cat", 0.0), (["dog"], "dog", 0.0), ([], "cat", 0.0)]
    assert best_threshold(rows) == 1


def test_best_threshold_refuses_raw_scores() -> None:
    with pytest.raises(InputError, match=r"na_prob of question 'b' is 3\.5.*\[0, 1\].*sigmoid"):
        squad_metrics.best_threshold(
            per_question({"a": [], "b": []}, {"a": "", "b": ""}), {"a": 0.1, "b": 3.5}
        )


def test_summary_shows_a_model_that_merely_abstains() -> None:
    gold = {"h1": ["cat"], "h2": ["dog"], "n1": [], "n2": [], "n3": []}
    predictions = {"h1": "cat", "h2": "big black old dog", "n1": "x", "n2": "x", "n3": "x"}
    abstaining = squad_metrics.summarize(per_question(gold, predictions), dict.fromkeys(gold, 0.9), 0.5)
    assert abstaining == squad_metrics.SquadSummary(
        exact=60, f1=60, has_ans_exact=0, has_ans_f1=0, no_ans_f1=100, forced_exact=50, forced_f1=70,
        always_abstain=60, total=5, has_ans_total=2, no_ans_total=3, threshold=0.5,
    )  # fmt: skip
    answering = squad_metrics.summarize(per_question(gold, predictions), dict.fromkeys(gold, 0.1), 0.5)
    assert answering == replace(abstaining, exact=20, f1=28, has_ans_exact=50, has_ans_f1=70, no_ans_f1=0)


def test_summary_gives_none_for_a_split_without_questions() -> None:
    answerable = squad_metrics.summarize(per_question({"q": ["cat"]}, {"q": "cat"}), {"q": 0.1}, 0.5)
    unanswerable = squad_metrics.summarize(per_question({"q": []}, {"q": "cat"}), {"q": 0.9}, 0.5)
    assert (answerable.no_ans_f1, answerable.always_abstain) == (None, 0)
    assert (unanswerable.has_ans_exact, unanswerable.has_ans_f1) == (None, None)
    assert (unanswerable.forced_exact, unanswerable.forced_f1) == (None, None)
    assert unanswerable.no_ans_f1 == 100


def test_per_question_keeps_the_order_of_the_gold_data() -> None:
    scores = per_question({"b": ["big cat"], "a": []}, {"a": "the", "b": "cat"})
    assert scores.ids == ("b", "a")
    assert scores.f1.tolist() == pytest.approx([2 / 3, 1])
    assert scores.exact.tolist() == [0, 1]
    assert scores.has_answer.tolist() == [True, False]
    assert scores.answered.tolist() == [True, True]


def test_gold_is_read_with_has_answer_from_the_answers_alone(write: Callable[[str, Any], str]) -> None:
    impossible = {**qa("has", "cat", "the"), "is_impossible": True}
    path = write("gold.json", squad(impossible, qa("no"), qa("only articles", "the", "!")))
    assert score_files.read_gold(path) == {"has": ["cat"], "no": [], "only articles": [""]}


def test_repeated_question_id_is_refused(write: Callable[[str, Any], str]) -> None:
    with pytest.raises(InputError, match="'q7' occurs twice"):
        score_files.read_gold(write("gold.json", squad(qa("q7"), qa("q7", "cat"))))


def test_gold_is_read_from_every_form_that_evaluate_reads(write: Callable[[str, Any], str]) -> None:
    has, no = qa("1", "cat", "dogs"), qa("2")
    numbered = [{**each, "id": int(each["id"])} for each in (has, no)]
    as_on_the_hub = [
        {**each, "answers": {"text": [answer["text"] for answer in each["answers"]], "answer_start": []}}
        for each in numbered
    ]
    lines = "".join(json.dumps(each) + "\n" for each in as_on_the_hub)
    marked = "\ufeff" + json.dumps(squad(has, no))
    documents = [squad(has, no), squad(*numbered), squad(*as_on_the_hub), as_on_the_hub, marked, lines]
    many = [lines, "\ufeff" + lines, json.dumps(squad(has, no)["data"][0])]
    paths = [write(f"{number}.json", content) for number, content in enumerate(documents)]
    paths += [write(f"{number}.jsonl", content) for number, content in enumerate(many)]
    for path in paths:
        assert score_files.read_gold(path) == {"1": ["cat", "dogs"], "2": []}, path


def test_question_that_nobody_has_answered_is_left_out_as_evaluate_does(
    write: Callable[[str, Any], str],
) -> None:
    open_ones = [{"id": "a", "question": "?"}, {"id": "b", "question": "?", "answers": None}]
    impossible = {"id": "c", "question": "?", "is_impossible": True}
    path = write("gold.json", squad(*open_ones, impossible, qa("d", "cat")))
    assert score_files.read_gold(path) == {"c": [], "d": ["cat"]}
    asked = measure.questions_of(write("evaluated.json", squad(*open_ones, impossible)))
    assert [each.question.id for each in asked] == ["c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "gold.json: not JSON"),
        ("[]", "gold.json must be an object"),
        ({"rows": []}, "gold.json has no 'data'"),
        ({"data": {}}, "'data' of .*gold.json must be a list"),
        ({"data": [{}]}, r"gold.json: data\[0\] has no 'paragraphs'"),
        ({"data": [{"paragraphs": [{}]}]}, r"data\[0\]\.paragraphs\[0\] has no 'qas'"),
        (squad(qa("q"), {"answers": []}), r"paragraphs\[0\]\.qas\[1\] has no 'id'"),
        (squad({"id": "q"}), r"qas\[0\] has no 'answers'"),
        (squad({"id": 3.5, "answers": []}), r"'id' of .*qas\[0\] must be a string, and is 3.5"),
        ([{"id": "q", "question": "?", "answers": 3}], r"'answers' of .*: row 0 must be a list, and is 3"),
        ('{"id": "q", "question": "?", "answers": []}\n{', "line 2 is not JSON"),
        (squad({"id": "q", "answers": ["cat"]}), r"qas\[0\]\.answers\[0\] must be an object"),
        (squad({"id": "q", "answers": [{"answer_start": 1}]}), r"answers\[0\] has no 'text'"),
    ],
)
def test_what_is_not_squad_is_refused_with_its_place(
    content: Any, message: str, write: Callable[[str, Any], str]
) -> None:
    with pytest.raises(InputError, match=message):
        score_files.read_gold(write("gold.json", content))


def test_missing_prediction_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"predictions lack 1 of 2 questions: 'b';"):
        squad_metrics.score(per_question({"a": [], "b": []}, {"a": ""}))


def test_many_missing_na_probs_are_counted_and_the_first_named() -> None:
    gold: dict[str, list[str]] = {f"q{i}": [] for i in range(9)}
    with pytest.raises(InputError, match="na_probs lack 8 of 9 questions: 'q1', 'q2', 'q3', …;"):
        squad_metrics.score(per_question(gold, dict.fromkeys(gold, "")), {"q0": 0.5})


@pytest.mark.parametrize("value", [None, 3, ["cat"]])
def test_prediction_that_is_not_text_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InputError, match="prediction for question 'b' is"):
        squad_metrics.score(per_question({"a": [], "b": []}, {"a": "", "b": value}))


@pytest.mark.parametrize(
    "value", [None, "0.5", True, float("nan"), float("-inf"), np.float32("inf"), 10**400, [0.5]]
)
def test_na_prob_that_is_not_a_finite_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InputError, match=r"na_prob of question 'b' is .*finite"):
        squad_metrics.score(per_question({"a": [], "b": []}, {"a": "", "b": ""}), {"a": 0.5, "b": value})


def test_na_probs_may_be_numpy_numbers() -> None:
    result = squad_metrics.score(per_question({"a": []}, {"a": "cat"}), {"a": np.float32(0.5)}, 0.25)
    assert result["f1"] == 100


def test_gold_without_questions_is_refused() -> None:
    with pytest.raises(InputError, match="no questions"):
        squad_metrics.score(per_question({}, {}))


def test_threshold_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InputError, match="threshold is nan"):
        squad_metrics.score(per_question({"a": []}, {"a": ""}), {"a": 0.5}, float("nan"))


@pytest.mark.parametrize("missing", ["gold.json", "predictions.json", "na_probs.json"])
def test_missing_file_is_refused_by_name(
    missing: str, write: Callable[[str, Any], str], tmp_path: Path
) -> None:
    write("gold.json", squad(qa("q", "cat")))
    write("predictions.json", {"q": "cat"})
    write("na_probs.json", {"q": 0.5})
    (tmp_path / missing).unlink()
    gold, predictions, na_probs = (
        str(tmp_path / name) for name in ("gold.json", "predictions.json", "na_probs.json")
    )
    with pytest.raises(InputError, match=f"{missing}: no such file"):
        score_files.score_files(gold, predictions, na_probs, 1.0)


def test_predictions_that_are_a_list_are_refused(write: Callable[[str, Any], str]) -> None:
    gold = write("gold.json", squad(qa("q")))
    with pytest.raises(InputError, match=r"predictions\.json must be an object"):
        score_files.score_files(gold, write("predictions.json", [{"id": "q"}]), None, 1.0)
