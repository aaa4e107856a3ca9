from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import modified
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import tiny

from tinyqa_ray.answer import FOLDER, AnswerReport, answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.answer.rows import ANSWERS
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, WindowConfig
from tinyqa_ray.core import shards, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import ModelSettings, write_settings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.answers import Answer, answers, ranked, with_document
from tinyqa_ray.reader.ranks import rescored

Rows = list[dict[str, Any]]

WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
DOCUMENTS = [
    {"id": f"d{i}", "text": paragraph["context"], "title": f"page {i}"}
    for i, paragraph in enumerate(
        p for article in tiny.squad_document()["data"] for p in article["paragraphs"]
    )
]
TEXTS = {row["id"]: row["text"] for row in DOCUMENTS}
ASKING = ["Who built the lighthouse?", "What did they burn?", "How long is the river?"]
ROUTED = [
    {"id": f"q{i}", "question": question, "document_id": f"d{(7 * i) % 8}"}
    for i, question in enumerate(ASKING * 6)
]
FREE = [{"id": f"q{i}", "question": question} for i, question in enumerate(ASKING)]


def write_lines(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> AnswerConfig:
    """Each question of its own document."""
    return AnswerConfig(
        model=tiny_bert,
        documents=write_lines(tmp_path / "documents.jsonl", DOCUMENTS),
        questions=write_lines(tmp_path / "questions.jsonl", ROUTED),
        window=WINDOW,
        top_k=2,
        rows_per_shard=5,
        threads=1,
    )


@pytest.fixture
def corpus(config: AnswerConfig, tmp_path: Path) -> AnswerConfig:
    """Each question of all documents."""
    return replace(config, questions=write_lines(tmp_path / "free.jsonl", FREE), top_k=4)


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "here" in request.fixturenames:
        monkeypatch.setattr(module, "connected", contextlib.nullcontext)


def made(config: AnswerConfig, output: Path) -> tuple[Rows, AnswerReport]:
    report = answer(config, str(output))
    table = pads.dataset(str(output / FOLDER)).to_table()
    assert table.schema.equals(ANSWERS, check_metadata=False)
    rows: Rows = table.to_pylist()
    assert len(rows) == report.rows
    assert report.answered + report.unanswered + report.errors == report.questions
    return rows, report


def of(rows: Rows, question_id: str) -> Rows:
    return [row for row in rows if row["question_id"] == question_id]


def assert_same(rows: Rows, expected: list[Answer]) -> None:
    assert [(row["document_id"], row["answer"], row["start"], row["end"]) for row in rows] == [
        (each.document_id, each.answer, each.start, each.end) for each in expected
    ]
    for row, each in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(each.score, abs=1e-4)
        assert row["na_prob"] == pytest.approx(each.na_prob, abs=1e-4)


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".parquet", ".jsonl")
    }


def test_question_with_a_document_is_answered_as_the_reader_answers_it(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    rows, report = made(config, tmp_path / "out")
    reader = Reader.from_pretrained(config.model, window=WINDOW)
    for question in ROUTED:
        document = question["document_id"]
        expected = reader.answer_many([(question["question"], TEXTS[document])], top_k=2)[0]
        assert_same(of(rows, question["id"]), [replace(each, document_id=document) for each in expected])
    assert [row["document_id"] for row in rows if row["rank"] == 0] == sorted(
        question["document_id"] for question in ROUTED
    )
    assert (report.documents, report.questions, report.pairs, report.errors) == (8, 18, 18, 0)


@pytest.mark.parametrize("rows_per_shard", [1, 5, 1000])
@pytest.mark.parametrize("per_document_k", [None, 1, 2])
def test_question_of_the_whole_corpus_is_answered_as_the_reader_ranks_all_documents(
    corpus: AnswerConfig, tmp_path: Path, here: list[str], rows_per_shard: int, per_document_k: int | None
) -> None:
    config = replace(corpus, rows_per_shard=rows_per_shard, per_document_k=per_document_k)
    rows, report = made(config, tmp_path / "out")
    reader = Reader.from_pretrained(config.model, window=WINDOW)
    for question in FREE:
        texts = list(TEXTS.values())
        expected = reader.answer(question["question"], texts, document_ids=list(TEXTS), top_k=4)
        if per_document_k:
            always = replace(reader.settings, no_answer_threshold=1.0)
            read = reader.read([(question["question"], text) for text in texts], top_k=40)
            found = [
                [with_document(each, name) for each in answers(reading, text, always, 40)]
                for reading, (name, text) in zip(read, TEXTS.items(), strict=True)
            ]
            seen: list[str | None] = []
            kept = []
            for each in ranked(found, reader.settings.no_answer_threshold, 400):
                if each.answer is None or seen.count(each.document_id) < per_document_k:
                    kept.append(each)
                seen.append(each.document_id)
            expected = rescored(kept[:4], reader.settings)
        assert_same(of(rows, question["id"]), expected)
    assert report.pairs == 24
    assert [row["question_id"] for row in rows if row["rank"] == 0] == [row["id"] for row in FREE]


def test_candidates_alone_are_read(corpus: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    questions = [*FREE, {"id": "none", "question": "Zyzzyva?"}]
    config = replace(
        corpus,
        questions=write_lines(tmp_path / "q.jsonl", questions),
        selection=CandidateConfig(candidates=2),
    )
    rows, report = made(config, tmp_path / "out")
    assert report.pairs <= 2 * 3
    assert report.passages == 8
    assert report.pairs_saved == pytest.approx(1 - report.pairs / 32)
    reader = Reader.from_pretrained(config.model, window=WINDOW)
    lighthouse = ["d0", "d1"]  # the only text with "lighthouse", and one of the words "built", …
    expected = reader.answer(ASKING[0], TEXTS["d0"], top_k=4)
    assert {row["document_id"] for row in of(rows, "q0")} <= {*lighthouse, None}
    assert_same(of(rows, "q0"), [replace(e, document_id=e.answer and "d0") for e in expected])
    (unmatched,) = of(rows, "none")
    assert (unmatched["answer"], unmatched["na_prob"], unmatched["document_id"]) == (None, 1.0, None)


def test_passages_of_a_long_document_give_places_in_the_document(
    corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    text = " ".join([*TEXTS.values()] * 3)
    config = replace(
        corpus,
        documents=write_lines(tmp_path / "d.jsonl", [{"id": "long", "text": text}]),
        selection=CandidateConfig(candidates=9, passage_words=30, passage_overlap=20),
        top_k=12,
    )
    rows, report = made(config, tmp_path / "out")
    assert report.pairs > 20
    spans = [row for row in of(rows, "q0") if row["answer"] is not None]
    assert all(text[row["start"] : row["end"]] == row["answer"] for row in spans)
    assert max(row["start"] for row in spans) > 600
    places = sorted((row["start"], row["end"]) for row in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    scores = [row["score"] for row in spans]
    assert scores == sorted(scores, reverse=True)


def test_question_that_names_its_document_tells_what_selection_costs(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    questions = [
        {"id": "right", "question": "Who built the lighthouse?", "document_id": "d0"},
        {"id": "wrong", "question": "Who built the lighthouse?", "document_id": "d5"},
    ]
    config = replace(
        config,
        questions=write_lines(tmp_path / "q.jsonl", questions),
        selection=CandidateConfig(candidates=1),
    )
    rows, report = made(config, tmp_path / "out")
    assert report.own_document_selected == 0.5
    assert {row["document_id"] for row in rows} <= {"d0", None}


def test_index_is_made_once_for_several_lists_of_questions(
    corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    index = tmp_path / "index"
    config = replace(corpus, selection=CandidateConfig(candidates=2), index=str(index))
    first, _ = made(config, tmp_path / "one")
    assert sum(target.startswith(str(index)) for target in here) == 1
    here.clear()
    other = replace(config, questions=write_lines(tmp_path / "one.jsonl", FREE[1:2]))
    rows, _ = made(other, tmp_path / "two")
    assert not any(target.startswith(str(index)) for target in here)
    assert rows == of(first, "q1")
    changed = replace(other, selection=CandidateConfig(candidates=2, passage_words=100))
    with pytest.raises(InputError, match="passage_words 200 there, 100 here"):
        answer(changed, str(tmp_path / "three"))


def test_pairs_are_each_asked_of_their_own_context(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    pairs = [
        {"question": row["question"], "context": TEXTS[row["document_id"]], "source": row["id"]}
        for row in ROUTED
    ]
    config = replace(
        config, documents=None, questions=None, pairs=write_lines(tmp_path / "pairs.jsonl", pairs)
    )
    rows, report = made(config, tmp_path / "out")
    assert report.questions == report.documents == 18
    reader = Reader.from_pretrained(config.model, window=WINDOW)
    found = reader.answer_many([(pair["question"], pair["context"]) for pair in pairs], top_k=2)
    for number, expected in enumerate(found):
        mine = of(rows, str(number))
        assert_same(mine, [replace(each, document_id=f"row-{number}") for each in expected])
        assert json.loads(mine[0]["meta"]) == {"source": f"q{number}"}


def test_other_columns_of_a_document_are_carried_along(
    config: AnswerConfig, corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    for number, each in enumerate((config, corpus)):
        rows, _ = made(each, tmp_path / str(number))
        spans = [row for row in rows if row["answer"] is not None]
        assert spans
        for row in spans:
            assert json.loads(row["meta"]) == {"title": f"page {row['document_id'][1:]}"}


BAD_DOCUMENTS = [
    {"id": "null", "text": None},
    {"id": "number", "text": 5},
    {"id": "empty", "text": " "},
    b'{"id": "bytes", "text": "not \xff UTF-8"}',
    {"id": "half", "text": "half \ud83d of a pair"},
]
TOO_LONG = "tokens, which leaves too little of a window of 48 for the context; shorten it"
DOCUMENT_ERRORS = {
    "null": "the text is missing",
    "number": "the text is int, not a string",
    "empty": "the text is empty",
    "bytes": "the text is not UTF-8 at byte 4",
    "half": "the text holds half a surrogate pair at character 5",
}


def test_bad_rows_become_rows_with_their_error(config: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    documents = write_lines(tmp_path / "d.jsonl", [DOCUMENTS[0], *BAD_DOCUMENTS, *DOCUMENTS[1:]])
    long = "Who " * 60 + "?"
    asked = [{"id": name, "question": "Who?", "document_id": name} for name in DOCUMENT_ERRORS]
    asked += [
        {"id": "absent", "question": "Who?", "document_id": "nowhere"},
        {"id": "blank", "question": "  ", "document_id": "d1"},
        {"id": "no question", "question": None, "document_id": "d1"},
        {"id": "long", "question": long, "document_id": "d1"},
    ]
    questions = write_lines(tmp_path / "q.jsonl", [asked[0], ROUTED[0], *asked[1:]])
    rows, report = made(replace(config, documents=documents, questions=questions), tmp_path / "out")
    errors = {row["question_id"]: row for row in rows if row["error"] is not None}
    wrong = {
        **DOCUMENT_ERRORS,
        "absent": "document 'nowhere' is not in the corpus",
        "blank": "the question is empty",
        "no question": "the question is missing",
    }
    assert {name: row["error"] for name, row in errors.items() if name != "long"} == wrong
    assert TOO_LONG in errors["long"]["error"]
    for row in errors.values():
        assert [row[name] for name in ("answer", "score", "start", "end", "na_prob")] == [None] * 5
    assert (report.questions, report.errors, report.unreadable_documents) == (10, 9, 5)
    assert len(of(rows, "q0")) == 2


def test_bad_rows_of_a_corpus_have_one_row_each(
    corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    questions = [FREE[0], {"id": "blank", "question": ""}, {"id": "long", "question": "Who " * 60}]
    config = replace(
        corpus,
        documents=write_lines(tmp_path / "d.jsonl", [*BAD_DOCUMENTS, *DOCUMENTS]),
        questions=write_lines(tmp_path / "q.jsonl", questions),
        jsonl=True,
    )
    for number, selection in enumerate((CandidateConfig(), CandidateConfig(candidates=3))):
        out = tmp_path / str(number)
        rows, report = made(replace(config, selection=selection), out)
        assert {
            row["document_id"]: row["error"] for row in rows if row["question_id"] is None
        } == DOCUMENT_ERRORS
        assert of(rows, "blank")[0]["error"] == "the question is empty"
        assert TOO_LONG in of(rows, "long")[0]["error"]
        assert (report.errors, report.unreadable_documents) == (2, 5)
        assert of(rows, "q0")[0]["error"] is None
        assert sorted(map(json.dumps, lines(out))) == sorted(map(json.dumps, map(plain, rows)))


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "meta": json.loads(row["meta"]) if row["meta"] else None}


def lines(output: Path) -> Rows:
    files = sorted((output / "answers-jsonl").iterdir())
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_json_lines_say_what_the_parquet_files_say(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    rows, _ = made(replace(config, jsonl=True), tmp_path / "out")
    assert lines(tmp_path / "out") == [plain(row) for row in rows]


def test_weak_answers_and_no_answers_can_be_left_out(
    config: AnswerConfig, corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    for number, each in enumerate((config, corpus)):
        every, before = made(each, tmp_path / f"every-{number}")
        best: dict[Any, float] = {}
        for row in (row for row in every if row["answer"] is not None):
            best[row["question_id"]] = max(row["score"], best.get(row["question_id"], 0.0))
        # Second answers score far less, so the bar is one for the best of each question.
        bar = sorted(best.values())[len(best) // 2]
        rows, report = made(replace(each, min_score=bar), tmp_path / f"bar-{number}")
        strong = [row for row in every if row["answer"] is not None and row["score"] >= bar]
        assert [row["answer"] for row in rows if row["answer"] is not None] == [
            row["answer"] for row in strong
        ]
        asked = {row["question_id"] for row in every}
        assert {row["question_id"] for row in rows} == asked
        none = [row for row in rows if row["answer"] is None]
        assert none
        assert report.questions == before.questions
        rows, report = made(replace(each, min_score=bar, keep_no_answers=False), tmp_path / f"none-{number}")
        assert [row["answer"] for row in rows] == [row["answer"] for row in strong]
        assert report.unanswered == len(asked) - len({row["question_id"] for row in strong})


@pytest.mark.parametrize("mode", ["routed", "every", "candidates", "pairs"])
def test_run_killed_after_any_file_goes_on_to_the_same_bytes(
    mode: str,
    config: AnswerConfig,
    corpus: AnswerConfig,
    tmp_path: Path,
    here: list[str],
    run_with_kills: Callable[[Callable[[], Any], Sequence[int]], int],
) -> None:
    rows = [{"question": row["question"], "context": TEXTS[row["document_id"]]} for row in ROUTED]
    pairs = write_lines(tmp_path / "pairs.jsonl", rows)
    config = {
        "routed": config,
        "every": corpus,
        "candidates": replace(corpus, selection=CandidateConfig(candidates=3, documents_per_shard=3)),
        "pairs": replace(config, documents=None, questions=None, pairs=pairs),
    }[mode]
    config = replace(config, jsonl=True)
    calm, report = made(config, tmp_path / "calm")
    kills = run_with_kills(lambda: answer(config, str(tmp_path / "killed")), (1, 2, 3, 5, 8, 1000))
    assert kills >= 4
    rows, again = made(config, tmp_path / "killed")
    assert rows == calm
    assert again == report
    assert content(tmp_path / "killed") == content(tmp_path / "calm")


def test_finished_run_is_left_alone_and_leaves_no_work_behind(
    corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    out = tmp_path / "out"
    _, report = made(corpus, out)
    assert sorted(path.name for path in out.iterdir() if path.name != "_INPUTS.json") == [
        "_STARTED.json",
        "_SUCCESS.json",
        "answers",
        "report.html",
    ]
    here.clear()
    before = modified.times(out)
    assert answer(corpus, str(out)) == report
    assert modified.times(out) == before
    assert here == []
    with pytest.raises(InputError, match="top_k 4 there, 1 here"):
        answer(replace(corpus, top_k=1), str(out))


def settings_file(path: Path, threshold: float) -> str:
    fitted = ModelSettings(no_answer_threshold=threshold, fitted_on="sha256 abc")
    write_settings(str(path), fitted)
    return str(path)


def test_settings_decide_what_is_answered(
    config: AnswerConfig, corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    for asked in (config, corpus):
        for threshold, answered in ((1.0, True), (0.0, False)):
            folder = tmp_path / f"{threshold}-{asked is corpus}"
            settings = settings_file(tmp_path / f"at-{threshold}", threshold)
            rows, _ = made(replace(asked, settings=settings), folder)
            assert {row["answer"] is not None for row in rows if row["rank"] == 0} == {answered}


def test_interrupted_run_is_not_continued_at_another_threshold(
    config: AnswerConfig,
    tmp_path: Path,
    here: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else one corpus would be answered at two."""

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    fitted = replace(config, settings=settings_file(tmp_path / "evaluation", 0.25))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_report", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(fitted, str(tmp_path / "out"))
    settings_file(tmp_path / "evaluation", 0.75)
    with pytest.raises(
        InputError, match=r"content of settings 'threshold 0\.25, .*' there, 'threshold 0\.75"
    ):
        answer(fitted, str(tmp_path / "out"))
    settings_file(tmp_path / "evaluation", 0.25)
    answer(fitted, str(tmp_path / "out"))


def test_actors_answer_with_the_settings_that_the_run_began_with(
    config: AnswerConfig, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = replace(config, settings=settings_file(tmp_path / "evaluation", 0.0))
    prepare = module.prepare

    def prepared(*given: Any) -> Any:
        settings_file(tmp_path / "evaluation", 1.0)  # fitted anew, while the run is under way
        return prepare(*given)

    monkeypatch.setattr(module, "prepare", prepared)
    rows, _ = made(fitted, tmp_path / "out")
    assert {row["answer"] for row in rows if row["rank"] == 0} == {None}


def test_kill_between_publishing_and_cleaning_leaves_nothing_for_ever(
    config: AnswerConfig, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(stage: stage_folder.Stage) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_folder.Stage, "clean", killed)
        with pytest.raises(KeyboardInterrupt):
            answer(config, str(tmp_path / "out"))
    assert (tmp_path / "out" / "_work").is_dir()
    (tmp_path / "out" / "answers" / "part-000000.parquet.1234.tmp").write_bytes(b"half")
    answer(config, str(tmp_path / "out"))
    assert not (tmp_path / "out" / "_work").exists()
    assert not list((tmp_path / "out" / "answers").glob("*.tmp"))


@pytest.mark.parametrize(
    ("field", "rows", "complaint"),
    [
        ("documents", [DOCUMENTS[0], b'{"id": "d9"'], "line 2: not JSON"),
        (
            "documents",
            [{"id": "d9", "body": "x"}],
            "lacks a column text or content or context; found 'id', 'body'",
        ),
        ("documents", [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]], "id 'd0' comes twice, in rows 1 and 3"),
        ("documents", [], "holds no documents"),
        ("questions", [{"id": 1, "query": "Who?"}], "lacks a column question; found 'id', 'query'"),
        ("questions", [ROUTED[0], ROUTED[1], ROUTED[0]], "id 'q0' of document 'd0' comes twice"),
        ("questions", [b" "], "holds no questions"),
    ],
)
def test_broken_file_is_refused_in_one_line_and_leaves_nothing(
    config: AnswerConfig, tmp_path: Path, here: list[str], field: str, rows: list[Any], complaint: str
) -> None:
    file = write_lines(tmp_path / f"broken-{field}.jsonl", rows)
    changed = replace(config, **{field: file})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"broken-{field}\.jsonl: .*{re.escape(complaint)}") as caught:
        answer(changed, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_truncated_parquet_is_refused_by_name(config: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    file = tmp_path / "cut.parquet"
    pq.write_table(pa.Table.from_pylist(DOCUMENTS), file)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"cut\.parquet: cannot be read"):
        answer(replace(config, documents=str(file)), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"documents": None}, "documents not given; give documents and questions, or pairs"),
        ({"documents": None, "questions": None}, "documents and questions not given"),
        ({"pairs": "p"}, "leave out documents and questions"),
        ({"index": "i"}, "index has no effect without candidates; give candidates"),
        ({"per_document_k": 0}, "per_document_k is 0"),
        ({"min_score": 1.5}, "min_score is 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    config: AnswerConfig, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        replace(config, **changes)


def test_long_document_is_read_to_its_end(config: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    text = "The owl sleeps. " * 20_000 + "Edith Marlow 🌉 built the lighthouse."
    questions = [{"id": "q", "question": ASKING[0], "document_id": "long"}, ROUTED[0]]
    config = replace(
        config,
        documents=write_lines(tmp_path / "d.jsonl", [{"id": "long", "text": text}, *DOCUMENTS]),
        questions=write_lines(tmp_path / "q.jsonl", questions),
        top_k=1,
    )
    rows, _ = made(config, tmp_path / "out")
    expected = Reader.from_pretrained(config.model, window=WINDOW).answer(ASKING[0], text)
    assert_same(of(rows, "q"), [replace(expected[0], document_id="long")])
    assert len(of(rows, "q0")) == 1


def test_page_shows_figures_scores_and_answers_in_their_text(
    config: AnswerConfig, corpus: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    for number, each in enumerate((config, corpus)):
        rows, report = made(each, tmp_path / str(number))
        page = (tmp_path / str(number) / "report.html").read_text(encoding="utf-8")
        assert f"{report.answered / report.questions:.1%}" in page
        assert "Slowest documents" in page
        best = [row for row in rows if row["rank"] == 0 and row["answer"] is not None]
        assert best
        assert any(f"<mark>{row['answer']}</mark>" in page for row in best)
        assert "<script" not in page


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_on_ray_answer_what_one_process_does(
    config: AnswerConfig, corpus: AnswerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers run in another folder: a relative path must mean the same there.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.model, "model")
    picked = replace(corpus, selection=CandidateConfig(candidates=3), actors=2, model="model")
    for number, each in enumerate((replace(config, model="model"), picked)):
        rows, report = made(replace(each, documents="documents.jsonl"), Path(f"ray-{number}"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shards, "_worked", _work_here)
            assert made(replace(each, actors=1), Path(f"plain-{number}")) == (rows, report)
        assert content(Path(f"ray-{number}")) == content(Path(f"plain-{number}"))


def _work_here(todo: Any, mapper: Any, options: Any, _: Any) -> Iterator[int]:
    ready = mapper(**options)
    for shard in todo:
        shards.work(shard, ready)
        yield shard.rows
