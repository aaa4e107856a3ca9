from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from samples import ENCODERS, Records, content, json_lines, parquet, read, written

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import inputs, tables


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "stage") if request.param == "local" else f"memory://{uuid.uuid4().hex}/stage"


@pytest.mark.parametrize("name", ENCODERS)
def test_questions_come_back_from_every_format(tmp_path: Path, name: str) -> None:
    records = [{"question": "Who hunts?", "document_id": "b"}, {"question": " ", "document_id": "a"}]
    file = written(f"{tmp_path}/{name}", ENCODERS[name](records))
    made = inputs.write_questions(file, f"{tmp_path}/made")
    assert (made.rows, made.routed) == (2, True)
    assert read(made.files) == [
        {"question_row": 0, "question_id": "0", "question": "Who hunts?", "document_id": "b", "error": None},
        {
            "question_row": 1,
            "question_id": "1",
            "question": None,
            "document_id": "a",
            "error": "the question is empty",
        },
    ]
    assert inputs.write_questions(file, f"{tmp_path}/made") == made


def test_questions_without_documents_ask_every_document(tmp_path: Path) -> None:
    file = written(f"{tmp_path}/q.csv", b"question_id,question,document_id\nq1,Who?,\nq2,What?,\n")
    made = inputs.write_questions(file, f"{tmp_path}/made")
    assert not made.routed
    assert [(row["question_id"], row["document_id"]) for row in read(made.files)] == [
        ("q1", None),
        ("q2", None),
    ]


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([{"id": 1, "text": "x"}], "lacks a column question; found 'id', 'text'"),
        ([], "holds no questions"),
        ([{}], "lacks a column question; found none"),
        (
            [{"question": "a", "document_id": 1}] * 120 + [{"question": "b"}],
            "line 1 has a document_id, .*line 121 has none; give it in all rows or in none",
        ),
        (
            [{"question": "a"}] * 120 + [{"question": "b", "document_id": 1}],
            "line 121 has a document_id, .*line 1 has none",
        ),
        ([{"question": "a"}] * 120 + [{"question": "b", "id": 1}], "line 121 has an id, .*line 1 has none"),
        ([{"question": "a", "document_id": [1]}], r"line 1: document_id is \[1\]; give a string"),
        ([{"id": 5, "question": "a"}, {"id": "5", "question": "b"}], "id '5' comes twice, in rows 1 and 2"),
        (
            [{"id": 5, "question": "a", "document_id": 6}] * 2,
            "id '5' of document '6' comes twice, in rows 1 and 2",
        ),
    ],
)
def test_questions_that_cannot_be_used_are_refused(tmp_path: Path, records: Records, complaint: str) -> None:
    file = written(f"{tmp_path}/q.jsonl", json_lines(records))
    with pytest.raises(InputError, match=complaint):
        inputs.write_questions(file, f"{tmp_path}/made")
    assert content(f"{tmp_path}/made") == {}


def test_one_question_id_may_ask_several_documents(tmp_path: Path) -> None:
    records = [{"id": 5, "question": "a", "document_id": i} for i in (6, 7)]
    made = inputs.write_questions(written(f"{tmp_path}/q.jsonl", json_lines(records)), f"{tmp_path}/made")
    assert made.rows == 2


def test_pairs_are_documents_and_their_questions(folder: str) -> None:
    records: Records = [
        {"id": "q0", "question": "Who?", "context": "An owl.", "title": "Owls"},
        {"id": "q1", "question": None, "context": "An owl.", "title": "Owls"},
        {"id": "q2", "question": "What?", "context": "", "title": "Owls"},
    ]
    made = inputs.write_pairs(written(f"{folder}/p.parquet", parquet(records)), f"{folder}/made")
    assert made.rows == 3
    documents, asked = read(made.documents), tables.asked_of(made.asked, 0, 2).to_pylist()
    assert [row["document_id"] for row in documents] == ["row-0", "row-1", "row-2"]
    assert [row["text"] for row in documents] == ["An owl.", "An owl.", None]
    assert [row["error"] for row in documents] == [None, None, "the text is empty"]
    assert {row["meta"] for row in documents} == {'{"title": "Owls"}'}
    assert [(row["row"], row["question_row"]) for row in asked] == [(0, 0), (1, 1), (2, 2)]
    assert [row["document_id"] for row in asked] == ["row-0", "row-1", "row-2"]
    assert [row["question"] for row in asked] == ["Who?", None, "What?"]
    assert [row["error"] for row in asked] == [None, "the question is missing", None]


def test_pairs_may_share_the_name_of_a_document_but_not_of_a_question(tmp_path: Path) -> None:
    records = [{"id": i, "question": "a", "context": "b", "document_id": "d"} for i in (1, 2)]
    made = inputs.write_pairs(written(f"{tmp_path}/p.jsonl", json_lines(records)), f"{tmp_path}/made")
    assert [row["document_id"] for row in read(made.documents)] == ["d", "d"]
    for record in records:
        record["id"] = 1
    file = written(f"{tmp_path}/twice.jsonl", json_lines(records))
    with pytest.raises(InputError, match="id '1' of document 'd' comes twice"):
        inputs.write_pairs(file, f"{tmp_path}/twice")
    assert content(f"{tmp_path}/twice") == {}
    with pytest.raises(InputError, match="lacks a column context or text or content; found 'question'"):
        inputs.write_pairs(written(f"{tmp_path}/q.jsonl", b'{"question": "a"}\n'), f"{tmp_path}/q")
