"""The callable classes, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.documents import read_document
from tinyqa_ray.models import hub
from tinyqa_ray.ray_data import (
    AnswerBatches,
    AnswerProcessorConfig,
    AugmentationProcessorConfig,
    AugmentBatches,
    TeacherLogitsBatches,
    TeacherLogitsProcessorConfig,
    answering,
    build_answer_processor,
    build_augmentation_processor,
    build_teacher_logits_processor,
)
from tinyqa_ray.reader import Reader
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

DOCUMENTS = Path(__file__).parents[1] / "documents" / "files"
WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)


def hub_rows() -> list[dict[str, Any]]:
    """The tiny questions in the form of the hub's squad_v2, with one more column."""
    return [
        {
            "id": question["id"],
            "question": question["question"],
            "context": paragraph["context"],
            "answers": {
                name: [answer[name] for answer in question["answers"]] for name in ("text", "answer_start")
            },
            "shelf": number,
        }
        for article in tiny.squad_document()["data"]
        for number, paragraph in enumerate(article["paragraphs"])
        for question in paragraph["qas"]
    ]


def test_answers_are_those_of_the_reader_beside_the_rows_own_columns(tiny_bert: str) -> None:
    rows = hub_rows()
    table = pa.Table.from_pylist(rows)
    made = AnswerBatches(AnswerProcessorConfig(model=tiny_bert, top_k=2, threshold=1.0))(table)
    assert made.select(table.column_names) == table
    pairs = [(row["question"], row["context"]) for row in rows]
    wanted = Reader.from_pretrained(tiny_bert).answer_many(pairs, top_k=2, threshold=1.0)
    for row, answers in zip(made.to_pylist(), wanted, strict=True):
        best = answers[0]
        assert (row["answer"], row["score"], row["na_prob"]) == (best.answer, best.score, best.na_prob)
        assert row["context"][row["start"] : row["end"]] == row["answer"]
        assert row["top_answers"] == [
            {"answer": each.answer, "score": each.score, "start": each.start, "end": each.end}
            for each in answers
        ]
        assert row["error"] is None


def test_documents_are_read_and_answers_say_their_page_and_boxes(tiny_bert: str) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra documents")
    names = ["divided-words.pdf", "divided-words.pdf", "slides.pptx", "encrypted.pdf", None]
    rows = pa.table(
        {
            "question": ["Who came?", "When?", "Who came?", "Who came?", "Who came?"],
            "path": [None if name is None else str(DOCUMENTS / name) for name in names],
            "shelf": range(5),
        }
    )
    options = {"model": tiny_bert, "top_k": 2, "threshold": 1.0, "prefix": "qa_", "path_column": "path"}
    made = AnswerBatches(AnswerProcessorConfig(**options))(rows).to_pylist()
    loaded = rows.append_column(
        "bytes",
        pa.array([None if name is None else (DOCUMENTS / name).read_bytes() for name in names], pa.binary()),
    )
    again = AnswerBatches(AnswerProcessorConfig(**options, bytes_column="bytes"))(loaded).to_pylist()
    assert again == made
    for row in made[:3]:
        document = read_document(row["path"], Path(row["path"]).read_bytes())
        assert row["context"] == document.text
        spans = [
            {name: row[f"qa_{name}"] for name in ("answer", "start", "end", "page", "boxes")},
            *row["qa_top_answers"],
        ]
        assert spans[0].items() <= spans[1].items()
        for span in spans:
            assert document.text[span["start"] : span["end"]] == span["answer"]
            assert span["page"] == document.places.page(span["start"])
            assert (span["boxes"] is not None) == row["path"].endswith(".pdf")
    assert [row["qa_error"] for row in made] == [
        None,
        None,
        None,
        "the file is encrypted; save it without a password",
        "the document has no path",
    ]
    assert {row[name] for row in made[3:] for name in ("context", "qa_answer", "qa_page", "qa_boxes")} == {
        None
    }
    assert set(made[0]) == {"question", "path", "shelf", *AnswerProcessorConfig(**options).added}
    with pytest.raises(InputError, match="give path_column, too"):
        AnswerProcessorConfig(bytes_column="bytes")
    with pytest.raises(InputError, match="the rows have context already"):
        AnswerBatches(AnswerProcessorConfig(**options))(rows.append_column("context", rows["question"]))


def test_row_that_cannot_be_asked_has_an_error_and_its_neighbours_are_answered(tiny_bert: str) -> None:
    batches = AnswerBatches(AnswerProcessorConfig(model=tiny_bert, threshold=1.0))
    context = "Owls hunt at night."
    table = pa.table(
        {"question": ["When?", None, " ", "When?"], "context": pa.array([context, context, context, None])}
    )
    made = batches(table).to_pylist()
    assert [row["error"] for row in made] == [
        None,
        "the question is None, not a text",
        "the question is empty; ask something",
        "the context is None, not a text",
    ]
    assert [row["answer"] is None for row in made] == [False, True, True, True]
    assert {row[name] for row in made[1:] for name in ("score", "start", "end", "na_prob")} == {None}
    numbers = batches(pa.table({"question": [1, 2], "context": [context] * 2})).to_pylist()
    assert [row["error"] for row in numbers] == ["the question is a int, not a text"] * 2


def test_unanswered_row_has_no_place_but_a_probability(tiny_bert: str) -> None:
    batches = AnswerBatches(AnswerProcessorConfig(model=tiny_bert, threshold=0.0))
    (row,) = batches(pa.table({"question": ["When?"], "context": ["Owls hunt."]})).to_pylist()
    assert (row["answer"], row["start"], row["end"], row["error"]) == (None, None, None, None)
    assert 0 < row["na_prob"] <= 1


def test_empty_table_gets_the_columns(tiny_bert: str) -> None:
    config = AnswerProcessorConfig(model=tiny_bert)
    empty = pa.schema([("question", pa.string()), ("context", pa.string())]).empty_table()
    assert AnswerBatches(config)(empty).column_names == ["question", "context", *config.added]


def test_columns_may_have_other_names_and_a_prefix(tiny_bert: str) -> None:
    config = AnswerProcessorConfig(
        model=tiny_bert, question_column="ask", context_column="text", prefix="qa_", threshold=1.0
    )
    made = AnswerBatches(config)(
        pa.table({"ask": ["When?"], "text": ["Owls hunt at night."], "answer": ["?"]})
    )
    assert made.column_names[:4] == ["ask", "text", "answer", "qa_answer"]
    assert made["answer"].to_pylist() == ["?"]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (["question", "text"], r"the rows lack context; they have question, text; name their columns"),
        (
            ["question", "context", "score", "error"],
            r"the rows have score, error already; rename it, or give a",
        ),
    ],
)
def test_wrong_columns_are_told_with_those_that_are_there(
    columns: list[str], complaint: str, tiny_bert: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        AnswerBatches(AnswerProcessorConfig(model=tiny_bert))(pa.table({name: ["a"] for name in columns}))


def test_ids_of_the_hub_get_their_commits_once_for_all_actors(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"tester/one": "1" * 40, "tester/two@v2": "2" * 40}
    monkeypatch.setattr(hub, "commit", lambda name, *, is_data=False: commits[name])
    monkeypatch.setattr(answering, "read_settings", lambda model, settings: read.append(model))
    read: list[str] = []
    one, two = "tester/one@" + "1" * 40, "tester/two@" + "2" * 40

    answers: Any = build_answer_processor(AnswerProcessorConfig(model="tester/one")).config
    assert (answers.model, read) == (one, [one])
    windows: Any = build_teacher_logits_processor(
        TeacherLogitsProcessorConfig(
            teachers=("tester/one", "tester/two@v2", tiny_bert), tokenizer="tester/one"
        )
    ).config
    assert (windows.teachers, windows.tokenizer) == ((one, two, tiny_bert), one)
    copies: Any = build_augmentation_processor(
        AugmentationProcessorConfig(masked_lm="tester/one", teacher="tester/two@v2")
    ).config
    assert (copies.masked_lm, copies.embeddings, copies.teacher) == (one, None, two)
    copies = build_augmentation_processor(
        AugmentationProcessorConfig(masked_lm="none", embeddings="tester/one")
    ).config
    assert (copies.masked_lm, copies.embeddings) == (None, one)


@pytest.mark.parametrize("concurrency", [0, (2, 1), (0, 2), "2", (1, 2, 3)])
def test_concurrency_is_a_number_or_a_range(concurrency: Any) -> None:
    with pytest.raises(InputError, match=r"concurrency is .*; give a number of actors"):
        AnswerProcessorConfig(concurrency=concurrency)


def test_windows_are_those_of_the_exact_pass(tiny_bert: str) -> None:
    rows = hub_rows()
    config = TeacherLogitsProcessorConfig(teachers=(tiny_bert,), window=WINDOW)
    made = TeacherLogitsBatches(config)(pa.Table.from_pylist(rows))
    exact = WindowWriter(TeacherLogitsConfig(data="", teachers=(tiny_bert,), window=WINDOW))
    paragraphs = squad.from_hub_rows([{"title": "", **row} for row in rows], "rows")
    wanted, _ = exact(squad.to_table(paragraphs))
    names = ["input_ids", "start_position", "end_position", "start_logits", "end_logits", "offsets"]
    mine = {(row["id"], tuple(row["input_ids"])): [row[name] for name in names] for row in made.to_pylist()}
    its = {
        (row["question_id"], tuple(row["input_ids"])): [row[name] for name in names]
        for row in wanted.to_pylist()
    }
    assert mine == its
    assert len(made) == len(wanted) > len(rows)
    assert len(set(made["window_id"].to_pylist())) == len(made)
    shelves = {row["id"]: row["shelf"] for row in rows}
    assert all(row["shelf"] == shelves[row["id"]] for row in made.to_pylist())


def test_question_whose_answer_is_elsewhere_stays_with_an_error_and_no_window(tiny_bert: str) -> None:
    rows = hub_rows()[:3]
    rows[1]["answers"] = {"text": ["nowhere"], "answer_start": [0]}
    table = pa.Table.from_pylist(rows)
    config = TeacherLogitsProcessorConfig(tokenizer=tiny_bert, window=WINDOW)
    made = TeacherLogitsBatches(config)(table).to_pylist()
    (bad,) = [row for row in made if row["error"] is not None]
    assert bad["id"] == rows[1]["id"]
    assert bad["input_ids"] is None
    assert "has the answer 'nowhere' at 0" in bad["error"]
    assert {row["id"] for row in made if row["input_ids"] is not None} == {rows[0]["id"], rows[2]["id"]}


def test_copies_follow_their_row_with_answers_at_their_places(tiny_bert: str) -> None:
    rows = hub_rows()
    rows[1]["context"] = None
    table = pa.Table.from_pylist(rows)
    config = AugmentationProcessorConfig(embeddings=tiny_bert, copies=2)
    made = AugmentBatches(config)(table)
    assert made.schema.field("answers").type == table.schema.field("answers").type
    good = [row for row in made.to_pylist() if row["error"] is None]
    assert [row["copy"] for row in good] == [0, 1, 2] * (len(rows) - 1)
    assert [row["id"] for row in good[::3]] == [row["id"] for row in rows if row["context"]]
    changed = 0
    for row in good:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
        changed += (
            row["copy"] > 0 and row["context"] != rows[[r["id"] for r in rows].index(row["id"])]["context"]
        )
    assert changed > len(good) // 3
    (bad,) = [row for row in made.to_pylist() if row["error"] is not None]
    assert (bad["id"], bad["copy"], bad["context"]) == (rows[1]["id"], 0, None)


def test_copies_do_not_depend_on_the_batch(tiny_bert: str) -> None:
    rows = hub_rows()[:4]
    batches = AugmentBatches(AugmentationProcessorConfig(embeddings=tiny_bert, copies=1))
    whole = batches(pa.Table.from_pylist(rows)).to_pylist()
    parts = [each for row in rows for each in batches(pa.Table.from_pylist([row])).to_pylist()]
    assert whole == parts


def test_question_without_an_id_is_named_by_its_texts(tiny_bert: str, tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("question", "context")} for row in hub_rows()[:3]]
    config = TeacherLogitsProcessorConfig(tokenizer=tiny_bert, window=WINDOW)
    made = TeacherLogitsBatches(config)(pa.Table.from_pylist(rows))
    assert len(set(made["window_id"].to_pylist())) == len(made)
    assert made["start_position"].to_pylist() == [-1] * len(made)  # nobody has answered them
