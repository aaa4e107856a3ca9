from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad


def document(context: Any = "A cat sat.", *questions: Any) -> dict[str, Any]:
    return {"data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def asked(text: Any = "cat", start: Any = 2, **changes: Any) -> dict[str, Any]:
    return {"id": "q", "question": "Who?", "answers": [{"text": text, "answer_start": start}], **changes}


def save(folder: Path, value: Any) -> str:
    (folder / "data.json").write_text(json.dumps(value))
    return str(folder / "data.json")


def parquet(folder: Path, **changes: Any) -> str:
    columns: dict[str, Any] = {
        "paragraph_id": ["p"],
        "title": ["T"],
        "context": ["A cat sat."],
        "questions": pa.array([[]], squad.PARAGRAPHS.field("questions").type),
        "source_id": ["p"],
        "copy": [0],
        **changes,
    }
    table = pa.table({name: value for name, value in columns.items() if value is not None})
    pq.write_table(table, folder / "a.parquet")
    return str(folder)


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@st.composite
def paragraphs(draw: st.DrawFn) -> list[squad.Paragraph]:
    made = []
    for number in range(draw(st.integers(1, 4))):
        context = " ".join(draw(st.lists(words, min_size=1, max_size=6)))
        questions = []
        for i in range(draw(st.integers(0, 3))):
            start = draw(st.integers(0, len(context) - 1))
            end = draw(st.integers(start + 1, len(context)))
            answers = (squad.GoldAnswer(context[start:end], start),) if draw(st.booleans()) else ()
            is_impossible = not answers and draw(st.booleans())  # or else it is unlabelled
            questions.append(squad.Question(f"{number}-{i}", draw(words), is_impossible, answers))
        name = f"T#{number}"
        made.append(
            squad.Paragraph(
                paragraph_id=name, title="T", context=context, questions=tuple(questions), source_id=name
            )
        )
    return made


@settings(deadline=None, max_examples=30)
@given(rows=paragraphs())
def test_json_round_trip(rows: list[squad.Paragraph], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = str(tmp_path_factory.getbasetemp() / "round.json")
    squad.write_json(rows, path)
    assert squad.read_squad(path) == rows


@settings(deadline=None, max_examples=30)
@given(rows=paragraphs(), mark=st.booleans())
def test_every_form_of_a_file_gives_the_same_questions(
    rows: list[squad.Paragraph], mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    articles = json.loads(b"".join(squad.json_pieces(rows)))["data"]
    asked = [
        (each["context"], question, article["title"])
        for article in articles
        for each in article["paragraphs"]
        for question in each["qas"]
    ]
    alone = [{"title": title, "context": context, **question} for context, question, title in asked]
    as_on_the_hub = [
        {
            **row,
            "answers": {
                name: [answer[name] for answer in row["answers"]] for name in ("text", "answer_start")
            },
        }
        for row in alone
    ]
    wanted = {question.id: (row.title, row.context, question) for row in rows for question in row.questions}
    parts = [{"title": article["title"], **each} for article in articles for each in article["paragraphs"]]
    for number, entries in enumerate((articles, parts, alone, as_on_the_hub)):
        if not entries:
            continue
        lines = "\r\n".join(json.dumps(each) for each in entries)
        contents = {"listed.json": json.dumps(entries), "lines.jsonl": lines, "lines.json": lines}
        for name, content in (contents | {"data.json": json.dumps({"data": entries})}).items():
            path = folder / f"{number}-{name}"
            path.write_text(content, encoding="utf-8-sig" if mark else "utf-8")
            read = squad.read_squad(str(path))
            assert wanted == {
                question.id: (row.title, row.context, question) for row in read for question in row.questions
            }
            assert len({row.paragraph_id for row in read}) == len(read)


@settings(deadline=None, max_examples=30)
@given(rows=paragraphs())
def test_arrow_round_trip(rows: list[squad.Paragraph]) -> None:
    assert squad.from_table(squad.to_table(rows)) == rows


def test_parquet_folder_round_trip_keeps_the_order_of_files(tiny_squad: str, tmp_path: Path) -> None:
    rows = squad.read_squad(tiny_squad)
    pq.write_table(squad.to_table(rows[:3]), tmp_path / "part-0.parquet")
    pq.write_table(squad.to_table(rows[3:]), tmp_path / "part-1.parquet")
    assert squad.read_squad(str(tmp_path)) == rows


def test_tiny_data_is_a_third_unanswerable(tiny_squad: str) -> None:
    gold = {q.id: [a.text for a in q.answers] for p in squad.read_squad(tiny_squad) for q in p.questions}
    assert len(gold) == 24
    assert sum(not texts for texts in gold.values()) == 8


def test_neighbours_of_one_title_share_an_article(tiny_squad: str) -> None:
    rows = squad.read_squad(tiny_squad)
    assert json.loads(b"".join(squad.json_pieces(rows)))["data"] == tiny.squad_document()["data"]
    assert [row.paragraph_id for row in rows[:3]] == ["Lighthouse#0", "Lighthouse#1", "Bread#0"]


def test_two_articles_of_one_title_get_different_paragraph_ids(tmp_path: Path) -> None:
    twice = document()["data"] + document("Another text.")["data"]
    rows = squad.read_squad(save(tmp_path, {"data": twice}))
    assert [row.paragraph_id for row in rows] == ["T#0", "T#1"]


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ({"is_impossible": True}, "unanswerable"),
        ({"is_impossible": True, "answers": []}, "unanswerable"),
        ({"is_impossible": True, "answers": [{"text": "", "answer_start": -1}]}, "unanswerable"),
        ({"is_impossible": True, "answers": [{"text": "", "answer_start": None}]}, "unanswerable"),
        ({"is_impossible": True, "answers": {"text": [""], "answer_start": []}}, "unanswerable"),
        ({"is_impossible": True, "answers": {"text": [], "answer_start": []}}, "unanswerable"),
        ({"answers": []}, "unanswerable"),
        ({"answers": {"text": [], "answer_start": []}}, "unanswerable"),
        ({}, "unlabelled"),
        ({"answers": None, "is_impossible": None}, "unlabelled"),
        ({"is_impossible": False}, "unlabelled"),
        ({"is_impossible": False, "answers": []}, "unlabelled"),
        ({"answers": [{"text": "cat", "answer_start": 2}]}, "answerable"),
        ({"is_impossible": False, "answers": [{"text": "cat", "answer_start": 2}]}, "answerable"),
        ({"answers": {"text": ["cat"], "answer_start": [2]}}, "answerable"),
    ],
)
def test_question_without_answers_is_unanswerable_only_where_it_is_said_to_be(
    tmp_path: Path, label: dict[str, Any], wanted: str
) -> None:
    value = document("A cat sat.", {"id": "q", "question": "Who?", **label})
    ((question,),) = [each.questions for each in squad.read_squad(save(tmp_path, value))]
    found = (
        "unanswerable" if question.is_impossible else "unlabelled" if question.unlabelled else "answerable"
    )
    assert found == wanted
    assert question.answers == ((squad.GoldAnswer("cat", 2),) if wanted == "answerable" else ())


def test_unlabelled_question_is_written_with_every_key_that_other_readers_look_for() -> None:
    question = squad.Question("q", "Who?", False, ())
    paragraph = squad.Paragraph(paragraph_id="T#0", title="T", context="A cat.", questions=(question,))
    written = json.loads(b"".join(squad.json_pieces([paragraph])))["data"][0]["paragraphs"][0]["qas"]
    assert written == [{"id": "q", "question": "Who?", "is_impossible": False, "answers": []}]


def test_question_with_an_answer_is_not_taken_for_impossible_or_not_in_silence(tmp_path: Path) -> None:
    both = document("A cat sat.", asked(is_impossible=True))
    with pytest.raises(InputError, match=r"qas\[0\]: question 'q' is_impossible, yet has the answer 'cat'"):
        squad.read_squad(save(tmp_path, both))


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    (paragraph,) = squad.read_squad(save(tmp_path, document("A cat sat.", asked(id=0), asked(id=262))))
    assert [question.id for question in paragraph.questions] == ["0", "262"]


def test_questions_without_ids_are_named_by_their_places(tmp_path: Path) -> None:
    nameless = [{key: value for key, value in asked().items() if key != "id"}] * 2  # as cdQA writes them
    (paragraph,) = squad.read_squad(save(tmp_path, document("A cat sat.", *nameless)))
    assert [question.id for question in paragraph.questions] == [
        f"data.json: data[0].paragraphs[0].qas[{number}]" for number in range(2)
    ]


def test_title_that_is_a_number_is_text(tmp_path: Path) -> None:
    value = document("A cat sat.", asked())
    value["data"][0]["title"] = 1843
    assert [row.title for row in squad.read_squad(save(tmp_path, value))] == ["1843"]
    assert [row.title for row in squad.read_squad(save(tmp_path, [hub_row(title=1843)]))] == ["1843"]


def test_article_without_a_title_has_none(tmp_path: Path) -> None:
    value = document("A cat sat.", asked())
    value["data"][0]["title"] = None
    (paragraph,) = squad.read_squad(save(tmp_path, value))
    assert (paragraph.title, paragraph.paragraph_id) == ("", "data#0")


def hub_row(**changes: Any) -> dict[str, Any]:
    answers = {"text": ["cat"], "answer_start": [2]}
    return {
        "id": 1,
        "title": None,
        "context": "A cat sat.",
        "question": "Who?",
        "answers": answers,
        **changes,
    }


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_hub_rows_in_a_file_are_read(tmp_path: Path, name: str) -> None:
    rows = [hub_row(), hub_row(id=2, answers={"text": [], "answer_start": []}), hub_row(id=3, answers=None)]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / name).write_text(json.dumps(rows) if name == "rows.json" else lines)
    (paragraph,) = squad.read_squad(str(tmp_path / name))
    assert paragraph.questions == (
        squad.Question("1", "Who?", False, (squad.GoldAnswer("cat", 2),)),
        squad.Question("2", "Who?", True, ()),
        squad.Question("3", "Who?", False, ()),
    )


def test_rows_without_answers_are_unlabelled_where_no_other_column_could_hold_them(tmp_path: Path) -> None:
    row = {key: value for key, value in hub_row().items() if key != "answers"}
    (paragraph,) = squad.read_squad(save(tmp_path, [row, hub_row(id=2)]))
    assert [question.unlabelled for question in paragraph.questions] == [True, False]
    with pytest.raises(InputError, match=r"row 1: lacks answers; found id, .*, target"):
        squad.read_squad(save(tmp_path, [hub_row(id=2), {**row, "target": "cat"}]))


@pytest.mark.parametrize("folder", [False, True])
def test_parquet_of_hub_rows_and_of_paragraphs_is_read(tmp_path: Path, folder: bool) -> None:
    rows = [hub_row(), hub_row(id=2, answers={"text": [], "answer_start": []}), hub_row(id=3, answers=None)]
    path = tmp_path / "made" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path)
    data = str(path.parent if folder else path)
    (paragraph,) = squad.read_squad(data)
    assert [(each.id, each.is_impossible, each.unlabelled) for each in paragraph.questions] == [
        ("1", False, False),
        ("2", True, False),
        ("3", False, True),
    ]
    pq.write_table(squad.to_table([paragraph]), path)
    assert squad.read_squad(data) == [paragraph]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (hub_row(context=None), "row 1: has no str 'context'"),
        (hub_row(answers={"text": ["cat"], "answer_start": ["2"]}), r"row 1\.answers\[0\]: has no int"),
        (hub_row(answers={"text": ["cat"], "answer_start": []}), r"row 1\.answers\[0\]: has no int"),
        (hub_row(answers={"text": "cat", "answer_start": 2}), r"row 1\.answers: has no list 'text'"),
        (hub_row(is_impossible="no"), "row 1: is_impossible is 'no'; it must be true or false"),
        (3, "row 1: is 3; it must be an object"),
    ],
)
def test_hub_row_that_cannot_be_read_is_refused_by_its_number(row: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        squad.from_hub_rows([hub_row(id=0), row], "hub")


def test_line_that_is_not_json_is_refused_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(hub_row()) + "\n{\n")
    with pytest.raises(InputError, match=r"rows\.jsonl: line 2 is not JSON"):
        squad.read_squad(str(tmp_path / "rows.jsonl"))


def test_version_1_without_is_impossible_is_read(tmp_path: Path) -> None:
    (paragraph,) = squad.read_squad(save(tmp_path, document("A cat sat.", asked())))
    assert paragraph.questions == (squad.Question("q", "Who?", False, (squad.GoldAnswer("cat", 2),)),)


def test_unanswerable_question_without_answers_key_is_read(tmp_path: Path) -> None:
    question = {"id": "q", "question": "Who?", "is_impossible": True, "plausible_answers": []}
    (paragraph,) = squad.read_squad(save(tmp_path, document("A cat sat.", question)))
    assert paragraph.questions == (squad.Question("q", "Who?", True, ()),)


def test_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "bom.json").write_text(json.dumps(document()), encoding="utf-8-sig")
    assert len(squad.read_squad(str(tmp_path / "bom.json"))) == 1


def test_hub_rows_are_grouped_by_context_in_their_order() -> None:
    def row(number: int, context: str, *answers: tuple[str, int]) -> dict[str, Any]:
        found = {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}
        return {"id": str(number), "title": "T", "context": context, "question": "?", "answers": found}

    rows = [row(0, "A cat.", ("cat", 2)), row(1, "A dog."), row(2, "A cat.", ("A", 0), ("A cat", 0))]
    cat, dog = squad.from_hub_rows(rows, "hub")
    assert (cat.paragraph_id, dog.paragraph_id) == ("T#0", "T#1")
    assert [question.id for question in cat.questions] == ["0", "2"]
    assert cat.questions[1].answers == (squad.GoldAnswer("A", 0), squad.GoldAnswer("A cat", 0))
    assert dog.questions == (squad.Question("1", "?", True, ()),)


def test_hub_rows_of_another_schema_are_refused() -> None:
    with pytest.raises(InputError, match="hub: lacks context, answers; found id, question"):
        squad.from_hub_rows([{"id": "1", "question": "?"}], "hub")
    with pytest.raises(InputError, match="hub: lacks id, context, question, answers; found text, labels"):
        squad.from_hub_rows([{"text": "A cat.", "labels": [1]}], "hub")


@pytest.mark.parametrize("name", ["absent.json", "./absent", "~/absent", "memory://absent/x"])
def test_missing_file_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: no such file or folder$"):
        squad.read_squad(name)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"data": "\xe9t\xe9"}')
    with pytest.raises(InputError, match=r"a\.json: not UTF-8 at byte 10"):
        squad.read_squad(str(tmp_path / "a.json"))


def test_text_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("id,question\n")
    with pytest.raises(InputError, match=r"a\.json: not JSON \(line 1, column 1"):
        squad.read_squad(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([], "holds no paragraphs"),
        ({"data": {}}, "has no list 'data'"),
        ({"data": [1]}, r"data\[0\]: has no list 'paragraphs'"),
        (document(1), r"data\[0\]\.paragraphs\[0\]: has no str 'context'"),
        (document("c", 1), r"paragraphs\[0\]\.qas\[0\]: has no str 'id'"),
        (document("c", asked(), asked(question=None)), r"qas\[1\]: has no str 'question'"),
        (document("c", asked(answers="cat")), r"qas\[0\]\.answers: is not a list"),
        (document("c", asked(text=None)), r"qas\[0\]\.answers\[0\]: has no str 'text'"),
        (document("c", asked(start="2")), r"qas\[0\]\.answers\[0\]: has no int 'answer_start'"),
        ({"data": []}, "holds no paragraphs"),
    ],
)
def test_json_that_is_not_squad_is_refused_with_its_place(tmp_path: Path, value: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        squad.read_squad(save(tmp_path, value))


@pytest.mark.parametrize(("start", "found"), [(3, "at "), (-3, ""), (9, "."), (99, "")])
def test_wrong_offset_is_refused_with_both_texts(tmp_path: Path, start: int, found: str) -> None:
    with pytest.raises(InputError, match=rf"'q' has the answer 'cat' at {start}, .* reads '{found}'"):
        squad.read_squad(save(tmp_path, document("A cat sat.", asked(start=start))))


def test_offset_from_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the answer 'sat' at -4"):
        squad.read_squad(save(tmp_path, document("A cat sat.", asked("sat", -4))))


def test_empty_answer_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the answer '' at 2, .*; leave it out, with an is_impossible"):
        squad.read_squad(save(tmp_path, document("A cat sat.", asked(text=""))))


def test_repeated_question_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="question id 'q' appears twice"):
        squad.read_squad(save(tmp_path, document("A cat sat.", asked(), asked())))


@pytest.mark.parametrize(
    "value",
    [
        document("A cat \ud800 sat."),
        document("A cat.", asked(question="\udc00?")),
        document("A cat.", asked(id="\ud800")),
    ],
)
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"'T#0' holds .* half a surrogate pair"):
        squad.read_squad(save(tmp_path, value))


def test_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no Parquet files"):
        squad.read_squad(str(tmp_path))


def test_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet"):
        squad.read_squad(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"context": None, "copy": None}, "lacks context, copy; found paragraph_id"),
        ({"questions": ["Who?"]}, "not those of paragraphs"),
        ({"copy": ["first"]}, "not those of paragraphs"),
        ({"context": pa.array([None], pa.string())}, "column context holds nulls"),
        ({"questions": [[{"id": "q"}]]}, "column questions holds nulls"),
    ],
)
def test_parquet_of_another_schema_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=rf"a\.parquet: .*{complaint}"):
        squad.read_squad(parquet(tmp_path, **changes))


def test_copies_of_a_question_keep_its_id(tmp_path: Path) -> None:
    (original,) = squad.read_squad(save(tmp_path, document("A cat sat.", asked())))
    copy = squad.Paragraph(
        paragraph_id="T#0~1",
        title="T",
        context="A cat lay.",
        questions=original.questions,
        source_id="T#0",
        copy=1,
    )
    pq.write_table(squad.to_table([original, copy]), tmp_path / "a.parquet")
    assert squad.read_squad(str(tmp_path)) == [original, copy]


def test_hub_data_set_is_loaded_at_the_revision_that_its_name_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load(name: str, configuration: str | None = None, **options: Any) -> Any:
        asked.append((name, configuration, options))
        raise ValueError("nothing here")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(InputError):
        squad.read_squad("rajpurkar/squad_v2@v2:validation")
    assert asked[0] == ("rajpurkar/squad_v2", None, {"split": "validation", "revision": "v2"})
