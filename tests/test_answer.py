from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
import tiny

from tinyqa_ray import answer as module
from tinyqa_ray.answer import ANSWERS, FOLDER, Answerer, AnswerReport, answer
from tinyqa_ray.configs import AnswerConfig, WindowConfig
from tinyqa_ray.errors import InputError

DOCUMENTS = [
    {"id": f"d{i}", "text": paragraph["context"]}
    for i, paragraph in enumerate(
        p for article in tiny.squad_document()["data"] for p in article["paragraphs"]
    )
]
TEXTS = {row["id"]: row["text"] for row in DOCUMENTS}
QUESTIONS = [
    {"id": f"q{i}", "question": question, "document_id": f"d{(7 * i) % 8}"}
    for i, question in enumerate(["Who built the lighthouse?", "What did they burn?", "How long is it?"] * 6)
]


def write_lines(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> AnswerConfig:
    return AnswerConfig(
        model=tiny_bert,
        documents=write_lines(tmp_path / "documents.jsonl", DOCUMENTS),
        questions=write_lines(tmp_path / "questions.jsonl", QUESTIONS),
        window=WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20),
        top_k=2,
    )


def asked(config: AnswerConfig) -> pa.Table:
    rows = module._asked(config.questions, module._documents(config.documents))
    return pa.Table.from_pylist(rows, schema=module._ASKED)


def answered(config: AnswerConfig) -> tuple[list[dict[str, Any]], dict[str, float]]:
    table, counts = Answerer(config)(asked(config))
    assert table.schema == ANSWERS
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows, counts


def test_every_question_is_answered_once_in_the_order_of_documents(config: AnswerConfig) -> None:
    rows, counts = answered(config)
    first = [row for row in rows if row["rank"] == 0]
    assert sorted(row["question_id"] for row in first) == sorted(row["id"] for row in QUESTIONS)
    assert [row["document_id"] for row in first] == sorted(row["document_id"] for row in QUESTIONS)
    assert all(0 <= row["rank"] < 2 for row in rows)
    assert counts == {
        "answered": sum(row["answer"] is not None for row in first),
        "unanswered": sum(row["answer"] is None for row in first),
        "errors": 0,
    }


def test_answer_stands_at_its_offsets_in_the_document(config: AnswerConfig) -> None:
    rows, _ = answered(config)
    given = [row for row in rows if row["answer"] is not None]
    assert given
    for row in given:
        assert TEXTS[row["document_id"]][row["start"] : row["end"]] == row["answer"]
        assert 0 <= row["na_prob"] <= 1
        assert 0 <= row["score"] <= 1


def test_question_that_cannot_be_asked_becomes_a_row_with_its_error(
    config: AnswerConfig, tmp_path: Path
) -> None:
    documents = [
        *DOCUMENTS,
        {"id": "null", "text": None},
        {"id": "number", "text": 5},
        {"id": "", "text": ""},
    ]
    documents.append({"id": "half", "text": "half \ud83d of a pair"})
    bad = {
        "absent": ("Who?", "nowhere", "document 'nowhere' is not among the documents"),
        "null text": ("Who?", "null", "the document's text is NoneType, not a string"),
        "number": ("Who?", "number", "the document's text is int, not a string"),
        "blank": ("  ", "d1", "the question is empty"),
        "no question": (None, "d1", "the question is empty"),
        "half document": ("Who?", "half", "the document's text holds half a surrogate pair"),
        "half question": ("Who \ud83d?", "d1", "the question holds half a surrogate pair"),
    }
    extra = [{"id": i, "question": text, "document_id": where} for i, (text, where, _) in bad.items()]
    empty = {"id": "empty text", "question": "Who?", "document_id": ""}
    config = replace(
        config,
        documents=write_lines(tmp_path / "d.jsonl", documents),
        questions=write_lines(tmp_path / "q.jsonl", [extra[0], QUESTIONS[0], *extra[1:], empty]),
    )
    rows, counts = answered(config)
    errors = {row["question_id"]: row for row in rows if row["error"] is not None}
    assert {name: row["error"] for name, row in errors.items()} == {name: b[2] for name, b in bad.items()}
    for row in errors.values():
        assert [row[name] for name in ("answer", "score", "start", "end", "na_prob")] == [None] * 5
    assert counts["errors"] == len(bad)
    assert sum(counts.values()) == len(bad) + 2
    assert next(row for row in rows if row["question_id"] == "empty text")["answer"] is None


def test_answers_are_ranked_by_score(config: AnswerConfig) -> None:
    rows, _ = answered(replace(config, top_k=3))
    for question in QUESTIONS:
        mine = [row for row in rows if row["question_id"] == question["id"]]
        assert [row["rank"] for row in mine] == [0, 1, 2]
        scores = [row["score"] for row in mine if row["answer"] is not None]
        assert scores == sorted(scores, reverse=True)


def test_offsets_count_characters_beyond_the_basic_plane(config: AnswerConfig, tmp_path: Path) -> None:
    text = "A 🌉 of 1871 by Edith Marlow 🌉 spans the Aare."
    config = replace(
        config,
        documents=write_lines(tmp_path / "d.jsonl", [{"id": "d", "text": text}]),
        questions=write_lines(tmp_path / "q.jsonl", [{"id": "q", "question": "Who?", "document_id": "d"}]),
        top_k=10,
    )
    given = [row for row in answered(config)[0] if row["answer"] is not None]
    assert any(row["start"] > text.index("🌉") for row in given)
    assert all(text[row["start"] : row["end"]] == row["answer"] for row in given)


def test_numbers_as_ids_are_kept_as_text(config: AnswerConfig, tmp_path: Path) -> None:
    config = replace(
        config,
        documents=write_lines(tmp_path / "d.jsonl", [{"id": 7, "text": "Edith built it."}]),
        questions=write_lines(tmp_path / "q.jsonl", [{"id": 1, "question": "Who?", "document_id": 7}]),
    )
    rows, counts = answered(config)
    assert counts["errors"] == 0
    assert (rows[0]["question_id"], rows[0]["document_id"]) == ("1", "7")


GOOD = {"documents": DOCUMENTS[0], "questions": QUESTIONS[0]}


@pytest.mark.parametrize(
    ("field", "lines", "complaint"),
    [
        ("documents", [DOCUMENTS[0], b'{"id": "d9"'], r"line 2: not JSON"),
        ("documents", [DOCUMENTS[0], b'{"id": "d9", "text": "\xff"}'], r"line 2: not JSON"),
        ("documents", [DOCUMENTS[0], b"", {"id": "d9"}], r"line 3: lacks text; found id"),
        ("documents", [DOCUMENTS[0], [1]], r"line 2: lacks id, text; found list"),
        ("documents", [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[0]], r"line 3: id 'd0' appears twice"),
        ("documents", [{"id": ["a"], "text": ""}], r"line 1: id is \['a'\]; give a string or a whole number"),
        ("documents", [], "holds no documents"),
        ("questions", [{"id": 1, "question": "Who?"}], r"line 1: lacks document_id; found id, question"),
        (
            "questions",
            [{"id": 1, "question": "Who?", "document_id": {}}],
            r"line 1: document_id is \{\}; give",
        ),
        ("questions", [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0]], r"line 3: .*'q0' .* twice"),
        ("questions", [b" "], "holds no questions"),
    ],
)
def test_broken_file_is_refused_with_its_line(
    config: AnswerConfig, tmp_path: Path, field: str, lines: list[Any], complaint: str
) -> None:
    file = write_lines(tmp_path / f"broken-{field}.jsonl", lines)
    changed = replace(config, **{field: file})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"broken-{field}\.jsonl: {complaint}") as caught:
        answer(changed, str(tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_one_question_id_may_be_asked_of_several_documents(config: AnswerConfig, tmp_path: Path) -> None:
    rows = [{**QUESTIONS[0], "document_id": name} for name in ("d0", "d1")]
    found, _ = answered(replace(config, questions=write_lines(tmp_path / "q.jsonl", rows)))
    assert [row["document_id"] for row in found if row["rank"] == 0] == ["d0", "d1"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_answers_what_a_plain_run_does_and_once(
    config: AnswerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers run in another folder: a relative path must mean the same there.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(config.model, "model")
    config = replace(config, rows_per_shard=5, model="model")
    report = answer(config, "out")
    out = tmp_path / "out"
    table = pads.dataset(str(out / FOLDER)).to_table()
    assert table.schema.equals(ANSWERS, check_metadata=False)
    expected, counts = answered(config)
    made = table.to_pylist()
    kept = ("question_id", "question", "document_id", "rank", "answer", "start", "end", "error")
    assert [[row[name] for name in kept] for row in made] == [
        [row[name] for name in kept] for row in expected
    ]
    for mine, its in zip(made, expected, strict=True):
        assert mine["score"] == pytest.approx(its["score"], abs=1e-4)
    assert report == AnswerReport(
        documents=8, questions=18, **{name: int(value) for name, value in counts.items()}
    )
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert answer(config, "out") == report
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
