"""Corpus answering: every question once, right offsets, bad rows as rows."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.answer import ANSWERS, Answerer, answer
from tinyqa_ray.configs import AnswerConfig, WindowConfig
from tinyqa_ray.errors import InputError

DOCUMENTS = [
    {"id": "bridge", "text": "The bridge was built in 1871 by Edith Marlow. 🌉 It spans the Aare."},
    {"id": "empty", "text": ""},
    {"id": "null", "text": None},
    {"id": "river", "text": "The Aare rises in the Alps " + "and flows past many small towns " * 30},
]
QUESTIONS = [
    {"id": "q1", "question": "Where does it rise?", "document_id": "river"},
    {"id": "q2", "question": "Who built it?", "document_id": "bridge"},
    {"id": "q3", "question": " ", "document_id": "bridge"},
    {"id": "q4", "question": "What?", "document_id": "null"},
    {"id": "q5", "question": "What?", "document_id": "absent"},
    {"id": "q6", "question": "What?", "document_id": "empty"},
    {"id": "q7", "question": "When?", "document_id": "bridge"},
]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> AnswerConfig:
    return AnswerConfig(
        model=tiny_bert,
        documents=lines(tmp_path / "documents.jsonl", DOCUMENTS),
        questions=lines(tmp_path / "questions.jsonl", QUESTIONS),
        rows_per_shard=3,
        window=WindowConfig(max_seq_len=48, doc_stride=12, max_query_len=16),
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_every_question_is_answered_once_or_says_why(config: AnswerConfig, tmp_path: Path) -> None:
    report = answer(config, str(tmp_path / "out"))
    assert (report.documents, report.questions, report.errors) == (4, 7, 3)
    assert report.answered + report.unanswered + report.errors == report.questions
    table = pq.read_table(tmp_path / "out" / "answers")
    assert table.schema.remove_metadata() == ANSWERS
    rows = {row["question_id"]: row for row in table.to_pylist()}
    assert sorted(rows) == [question["id"] for question in QUESTIONS]
    assert table.num_rows == len(QUESTIONS)
    texts = {document["id"]: document["text"] for document in DOCUMENTS}
    for row in rows.values():
        if row["answer"] is not None:
            assert texts[row["document_id"]][row["start"] : row["end"]] == row["answer"]
    assert "empty" in rows["q3"]["error"]
    assert "NoneType" in rows["q4"]["error"]
    assert "'absent' is not among" in rows["q5"]["error"]
    assert rows["q6"]["answer"] is None
    assert rows["q6"]["error"] is None
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "answers").iterdir())]
    assert answer(config, str(tmp_path / "out")) == report
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "answers").iterdir())] == times


def test_top_k_ranks_answers(config: AnswerConfig) -> None:
    from dataclasses import replace

    row = {
        "question_id": "q2",
        "question": "Who?",
        "document_id": "d",
        "text": DOCUMENTS[0]["text"],
        "error": None,
    }
    made, counts = Answerer(replace(config, top_k=3))(pa.Table.from_pylist([row]))
    assert made["rank"].to_pylist() == [0, 1, 2]
    scores = [row["score"] for row in made.to_pylist() if row["answer"] is not None]
    assert scores == sorted(scores, reverse=True)
    assert counts["answered"] + counts["unanswered"] == 1


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ('{"id": "a", "text": "x"}\n{"id": "a", "text": "y"}\n', "line 2: id 'a' appears twice"),
        ('{"id": "a", "text": "x"}\n\n{"id": \n', "line 3: not JSON"),
        ('{"id": "a", "body": "x"}\n', "line 1: lacks text; found id, body"),
        ("[1]\n", "line 1: lacks id, text; found list"),
        ("\n", "holds no documents"),
    ],
)
def test_broken_documents_are_refused_by_line(
    documents: str, complaint: str, config: AnswerConfig, tmp_path: Path
) -> None:
    Path(config.documents).write_text(documents)
    with pytest.raises(InputError, match=complaint):
        answer(config, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
