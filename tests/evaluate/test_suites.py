"""Suites: several models on several test sets, from files and from a hub on the loopback."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from tinyqa_ray.cli import main
from tinyqa_ray.configs import EvaluateConfig, SuiteConfig, WindowConfig
from tinyqa_ray.configs.gates import gates
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import mrqa
from tinyqa_ray.evaluate import evaluate, evaluate_suites, squad_metrics, suite_work
from tinyqa_ray.evaluate.suite_report import FIGURES, shortfalls, table

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)
SMALL = ("--max-seq-len", "96", "--doc-stride", "8", "--max-query-len", "20")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two files: one like SQuAD 2.0, and one in a folder that has an answer to every question."""
    made = tmp_path / "tests"
    (made / "more").mkdir(parents=True)
    tiny.write_squad(made / "mixed.json")
    document = tiny.squad_document(3)
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [row for row in paragraph["qas"] if row["answers"]]
    (made / "more" / "answered.json").write_text(json.dumps(document))
    (made / "README.md").write_text("no data")
    return str(made)


@pytest.fixture
def config(tiny_bert: str, tiny_roberta: str, folder: str) -> SuiteConfig:
    return SuiteConfig(models=(tiny_bert, tiny_roberta), suite_folder=folder, window=WINDOW)


def row(**changes: Any) -> dict[str, Any]:
    """A row of a part."""
    figures = dict.fromkeys(FIGURES, 50.0)
    known = {"model": "m", "suite": "s", "part": "p", "metrics": "squad1", "questions": 2}
    return {**known, "questions_per_s": 1.0, **figures, **changes}


def test_every_model_is_measured_on_every_file_by_the_rule_of_its_data(
    config: SuiteConfig, folder: str, tmp_path: Path
) -> None:
    report = evaluate_suites(config, str(tmp_path / "out"))
    places = [(each["model"], each["suite"], each["part"], each["metrics"]) for each in report.rows]
    assert places == [
        (model, "tests", part, metrics)
        for model in config.models
        for part, metrics in (("mixed", "squad2"), ("more/answered", "squad1"), (None, "mixed"))
    ]
    assert report.questions == 24 + 6
    mixed, answered, mean = report.rows[:3]
    alone = evaluate(
        EvaluateConfig(model=config.models[0], data=f"{folder}/mixed.json", window=WINDOW),
        str(tmp_path / "alone"),
    )
    for name in ("exact", "f1", "has_ans_f1", "no_ans_f1", "forced_f1"):
        assert mixed[name] == getattr(alone, name), name
    official = json.loads((tmp_path / "alone" / "metrics.json").read_text())["official"]
    assert mixed["best_f1"] == official["best_f1"]
    assert (answered["f1"], answered["exact"]) == (answered["forced_f1"], answered["forced_exact"])
    assert (answered["no_ans_f1"], answered["best_f1"]) == (None, None)
    assert mean["f1"] == pytest.approx((mixed["f1"] + answered["f1"]) / 2)
    assert mean["questions"] == 30
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["rows"] == list(report.rows)


def test_page_has_every_model_and_part(config: SuiteConfig, tmp_path: Path) -> None:
    report = evaluate_suites(config, str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    for word in ("mixed", "more/answered", *config.models, *(f"{each['f1']:.1f}" for each in report.rows)):
        assert word in page


def test_interrupted_run_continues_and_a_finished_one_is_told_at_once(
    config: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate_suites(config, str(tmp_path / "whole"))
    asked: list[int] = []
    measured = suite_work._measured

    def failing(reader: Any, questions: Any, *others: Any) -> Any:
        asked.append(len(questions))
        if len(asked) == 3:
            raise RuntimeError("killed")
        return measured(reader, questions, *others)

    monkeypatch.setattr(suite_work, "_measured", failing)
    out = str(tmp_path / "out")
    with pytest.raises(RuntimeError, match="killed"):
        evaluate_suites(config, out)
    report = evaluate_suites(config, out)
    assert asked == [24, 24, 6, 6, 6], "what was measured is not measured again"

    def without_speed(rows: Any) -> list[dict[str, Any]]:
        return [{**each, "questions_per_s": None} for each in rows]

    assert without_speed(report.rows) == without_speed(whole.rows)
    monkeypatch.setattr(suite_work, "_reader", None)
    again = evaluate_suites(replace(config, fail_below=("f1=1",), threads=1), out)
    assert again == report
    with pytest.raises(InputError, match="holds a run with other settings"):
        evaluate_suites(replace(config, max_questions=3), out)


def test_at_most_so_many_questions_are_asked(config: SuiteConfig, tmp_path: Path) -> None:
    report = evaluate_suites(
        replace(config, models=config.models[:1], max_questions=5), str(tmp_path / "out")
    )
    assert [each["questions"] for each in report.rows] == [5, 5, 10]


def test_folder_without_data_or_none_is_refused(config: SuiteConfig, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for path, complaint in (
        (empty, "has no file that ends with .json"),
        (tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(InputError, match=complaint):
            evaluate_suites(replace(config, suite_folder=str(path)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_squad1_scores_are_the_official_ones() -> None:
    """SQuAD 1.1 counts an answer of articles alone, and gives no F1 where no token is shared."""
    gold = {"a": ["the cat", "a dog"], "b": ["The"], "c": ["nine lives"], "d": ["x"]}
    found = squad_metrics.squad1_score(gold, {"a": "Dog!", "b": "the", "c": "nine", "d": ""})
    assert found == pytest.approx((50.0, 100 * (1 + 0 + 2 / 3 + 0) / 4))
    with pytest.raises(InputError, match="lack 1 of 1"):
        squad_metrics.squad1_score({"a": ["x"]}, {})


def test_mean_is_over_parts_and_not_over_questions() -> None:
    rows = table([row(part="p", f1=10.0, questions=1), row(part="q", f1=30.0, questions=99, no_ans_f1=None)])
    assert [each["part"] for each in rows] == ["p", "q", None]
    assert (rows[2]["f1"], rows[2]["no_ans_f1"], rows[2]["questions"]) == (20.0, 50.0, 100)


def test_shortfalls_name_model_figure_and_suite() -> None:
    rows = [row(f1=70.0), row(part=None, f1=79.999), row(part=None, model="n", f1=81.0, no_ans_f1=None)]
    said = shortfalls(gates(["f1=80"]), rows)
    assert said == ["f1 of m on s is 79.999, below 80"]
    assert shortfalls(gates(["p:f1=71", "s:f1=10"]), rows) == ["f1 of m on p is 70.00, below 71"]
    assert shortfalls(gates(["f1=70", "exact=50"]), rows) == []
    assert shortfalls(gates(["x:f1=1"]), rows) == ["there is no suite or part 'x' that f1 could be asked of"]
    assert shortfalls(gates(["no_ans_f1=1"]), rows) == ["s has no question for no_ans_f1"]


def test_shell_ends_with_1_below_a_figure_and_with_2_for_a_mistake(
    folder: str, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", "--suite-folder", folder, "--models", tiny_bert, *SMALL]

    def code(*more: str) -> object:
        with pytest.raises(SystemExit) as stop:
            main.main([*given, *more])
        return stop.value.code

    out = ["--output", str(tmp_path / "out")]
    main.main([*given, *out, "--fail-below", "f1=0"])
    printed = json.loads(capsys.readouterr().out)
    assert [each["part"] for each in printed["rows"]] == ["mixed", "more/answered", None]
    assert code(*out, "--fail-below", "f1=99.5", "exact=0") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("tinyqa: f1 of ")
    assert last.endswith(", below 99.5")
    assert code(*out, "--fail-below", "f3=1") == 2
    assert code("--suite", "squad3", "--output", str(tmp_path / "new")) == 2
    assert "squad3" in capsys.readouterr().err


def test_shell_ends_with_1_below_a_figure_of_one_evaluation_too(
    tiny_squad: str, tiny_bert: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "evaluate",
        "--data",
        tiny_squad,
        "--model",
        tiny_bert,
        *SMALL,
        "--output",
        str(tmp_path / "out"),
    ]
    main.main([*given, "--fail-below", "f1=0"])
    with pytest.raises(SystemExit) as stop:
        main.main([*given, "--fail-below", "f1=0", "forced_f1=99"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("tinyqa: forced_f1 of ")


def hub_rows(prefix: str, *, unanswerable: bool) -> list[dict[str, Any]]:
    """Rows as the hub has them."""
    return [
        {
            "id": f"{prefix}{question['id']}",
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for article in tiny.squad_document(2)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if unanswerable or question["answers"]
    ]


def mrqa_rows(prefix: str, subsets: tuple[str, str]) -> list[dict[str, Any]]:
    """Rows as MRQA's: a span has its last character, and ``answers`` accepts more than is detected."""
    return [
        {
            "subset": subsets[number % 2],
            "qid": each["id"],
            "context": each["context"],
            "context_tokens": {"tokens": ["never", "read"], "offsets": [0, 6]},
            "question": each["question"],
            "detected_answers": {
                "text": each["answers"]["text"],
                "char_spans": [
                    {"start": [start], "end": [start + len(text) - 1]}
                    for text, start in zip(*each["answers"].values(), strict=True)
                ],
            },
            "answers": [*each["answers"]["text"], "lighthouse on"],
        }
        for number, each in enumerate(hub_rows(prefix, unanswerable=False))
    ]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    """A hub with small data sets under the names, configurations and splits of the real ones."""
    one, two = (hub_rows("", unanswerable=each) for each in (False, True))
    with hub_server.hub() as made:
        made.add_dataset("rajpurkar/squad_v2", {"squad_v2/validation-00000-of-00001.parquet": parquet(two)})
        made.add_dataset("rajpurkar/squad", {"plain_text/validation-00000-of-00001.parquet": parquet(one)})
        made.add_dataset("google/xquad", {"xquad.en/validation-00000-of-00001.parquet": parquet(one)})
        adversarial = {
            f"{name}/validation-00000-of-00001.parquet": parquet(hub_rows(name, unanswerable=False))
            for name in ("adversarialQA", "dbidaf", "dbert", "droberta")
        }
        made.add_dataset("UCLNLP/adversarial_qa", adversarial)
        made.add_dataset(
            "mrqa-workshop/mrqa",
            {
                "plain_text/validation-00000-of-00001.parquet": parquet(mrqa_rows("v", ("SQuAD", "NewsQA"))),
                "plain_text/test-00000-of-00001.parquet": parquet(mrqa_rows("t", ("BioASQ", "DROP"))),
            },
        )
        # Its files are made by a script; the hub has a Parquet copy in a branch.
        made.add_dataset("ludwigschmidt/squadshifts", {"squadshifts.py": b"raise SystemExit('never run')"})
        shifts = {
            f"{name}/test/0000.parquet": parquet(hub_rows(name, unanswerable=False))
            for name in ("new_wiki", "nyt", "reddit", "amazon")
        }
        made.add_dataset("ludwigschmidt/squadshifts", shifts, revision="refs/convert/parquet")
        yield made


def test_named_suites_come_from_the_hub(hub: hub_server.Hub, tiny_bert: str, tmp_path: Path) -> None:
    names = ("squad2", "squad1", "xquad-en", "adversarial_qa", "squadshifts", "mrqa")
    done = hub.run(
        tmp_path / "home",
        *("-m", "tinyqa_ray", "evaluate", "--models", tiny_bert, "--suite", *names, *SMALL),
        *("--output", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(each["suite"], each["part"]) for each in rows] == [
        *(pair for name in names[:3] for pair in ((name, name), (name, None))),
        *(("adversarial_qa", part) for part in ("dbidaf", "dbert", "droberta", None)),
        *(("squadshifts", part) for part in ("new_wiki", "nyt", "reddit", "amazon", None)),
        *(("mrqa", f"validation/{part}") for part in ("NewsQA", "SQuAD")),
        *(("mrqa", part) for part in ("test/BioASQ", "test/DROP", None)),
    ]
    assert [each["metrics"] for each in rows[:3]] == ["squad2", "squad2", "squad1"]
    assert all(each["questions"] == (6 if each["suite"] == "squad2" else 4) for each in rows[:6])
    assert rows[-1]["questions"] == 8
    page = (tmp_path / "out" / "report.html").read_text()
    assert "squadshifts" in page


def test_configuration_or_split_that_is_not_there_is_one_line(
    hub: hub_server.Hub, tiny_bert: str, tmp_path: Path
) -> None:
    done = hub.run(
        tmp_path / "home",
        *("-m", "tinyqa_ray", "evaluate", "--model", tiny_bert, "--data", "google/xquad:xquad.xx:validation"),
        *(*SMALL, "--output", str(tmp_path / "out")),
    )
    assert done.returncode == 2
    told = r"tinyqa: google/xquad@\w+:xquad\.xx:validation: neither a file, a folder, nor a data set"
    assert re.search(told, done.stderr)
    assert "Traceback" not in done.stderr


def test_mrqa_row_becomes_one_of_squad() -> None:
    given = mrqa_rows("", ("SQuAD", "NewsQA"))[0]
    assert mrqa.is_mrqa(given)
    spans = given["detected_answers"]["char_spans"]
    given["detected_answers"]["char_spans"] = [*spans, *spans]
    assert mrqa.as_squad(given) == {**hub_rows("", unanswerable=False)[0], "title": "SQuAD"}
