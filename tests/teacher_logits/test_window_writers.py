from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
import pytest
import torch

from tinyqa_ray.configs import ExportConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import plain_text, squad
from tinyqa_ray.datasets.windows import NO_ANSWER, NO_LABEL
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.export import export
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import ModelSettings, write_settings
from tinyqa_ray.teacher_logits.window_dataset import WINDOWS, logit_columns, schema
from tinyqa_ray.teacher_logits.window_writers import TextWriter, WindowWriter

# Small windows, so that a context takes several.
WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
LOGITS = ["start_logits", "end_logits"]


@pytest.fixture(params=["bert", "roberta"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"tiny_{request.param}"))


def config(data: str, tokenizer: str, **options: Any) -> TeacherLogitsConfig:
    given = {"data": data, "tokenizer": tokenizer, "teachers": (tokenizer,), "window": WINDOW, **options}
    return TeacherLogitsConfig(**given)


def flat(table: pa.Table, name: str) -> Any:
    return np.concatenate(table[name].to_pylist()).astype(np.float64)


def write(table: pa.Table, path: Path) -> str:
    """Windows in a file as a shard leaves it."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return str(path)


@pytest.fixture
def windows(tiny_squad: str, model: str, paragraphs: list[squad.Paragraph]) -> pa.Table:
    return WindowWriter(config(tiny_squad, model))(squad.to_table(paragraphs))[0]


def test_windows_have_the_published_schema(windows: pa.Table) -> None:
    assert windows.schema == WINDOWS
    required = [name for name in WINDOWS.names if name != "token_type_ids"]
    assert {name: windows[name].null_count for name in required} == dict.fromkeys(required, 0)
    windows.validate(full=True)


def test_logits_are_unpadded_and_those_of_a_plain_forward(windows: pa.Table, model: str) -> None:
    network = pretrained.load_qa_model(model)
    for row in windows.to_pylist()[::7]:
        assert len(row["start_logits"]) == len(row["end_logits"]) == len(row["input_ids"])
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if row["token_type_ids"] is not None:
            inputs["token_type_ids"] = torch.tensor([row["token_type_ids"]])
        with torch.inference_mode():
            output = network(**inputs)
        np.testing.assert_allclose(row["start_logits"], output.start_logits[0], atol=1e-2)
        np.testing.assert_allclose(row["end_logits"], output.end_logits[0], atol=1e-2)


def test_teacher_may_be_an_export(tiny_squad: str, tiny_bert: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra cpu")
    exported = str(tmp_path / "export")
    export(ExportConfig(model=tiny_bert, precision="fp32"), exported)
    rows = squad.to_table(squad.read_squad(tiny_squad))
    found, wanted = (
        WindowWriter(config(tiny_squad, tiny_bert, teachers=(model,)))(rows)[0]
        for model in (exported, tiny_bert)
    )
    plain = [name for name in found.column_names if name not in LOGITS]
    assert found.select(plain) == wanted.select(plain)
    for name in LOGITS:
        np.testing.assert_allclose(flat(found, name), flat(wanted, name), atol=1e-2)


def test_labels_point_at_the_answer(windows: pa.Table, paragraphs: list[squad.Paragraph]) -> None:
    contexts = {paragraph.paragraph_id: paragraph.context for paragraph in paragraphs}
    answers = {q.id: q.answers[0] for paragraph in paragraphs for q in paragraph.questions if q.answers}
    labelled = set()
    for row in windows.to_pylist():
        offsets = np.array(row["offsets"]).reshape(-1, 2)
        first, last = row["start_position"], row["end_position"]
        answer = answers.get(row["question_id"])
        whole = answer is not None and (
            offsets[0, 0] <= answer.answer_start and answer.answer_start + len(answer.text) <= offsets[-1, 1]
        )
        if not whole:
            assert (first, last) == (0, 0)
            continue
        start = offsets[first - row["context_start"], 0]
        end = offsets[last - row["context_start"], 1]
        assert answer is not None
        assert contexts[row["paragraph_id"]][start:end] == answer.text
        labelled.add(row["question_id"])
    assert labelled == set(answers)


def test_window_that_holds_only_a_later_answer_is_not_taught_that_there_is_none(
    tiny_squad: str, tiny_bert: str
) -> None:
    context = "Ada Byron built it. " + "Filler words come here again and again. " * 8 + "Ada Byron built it."
    answers = tuple(squad.GoldAnswer("Ada Byron", start) for start in (0, context.rindex("Ada")))
    question = squad.Question("a", "Who built it?", False, answers)
    paragraph = squad.Paragraph(paragraph_id="p", title="", context=context, questions=(question,))
    table, counts = WindowWriter(config(tiny_squad, tiny_bert, teachers=()))(squad.to_table([paragraph]))
    first, *between, last = table.to_pylist()
    for row, answer in zip((first, last), answers, strict=True):
        shown = np.array(row["offsets"]).reshape(-1, 2)
        assert shown[row["start_position"] - row["context_start"], 0] == answer.answer_start
        assert shown[row["end_position"] - row["context_start"], 1] == answer.answer_start + len(answer.text)
    assert between
    assert {(row["start_position"], row["end_position"]) for row in between} == {(NO_ANSWER, NO_ANSWER)}
    assert counts["answerable_windows"] == 2


def test_window_ids_are_unique_and_stay(
    windows: pa.Table, tiny_squad: str, model: str, paragraphs: list[squad.Paragraph]
) -> None:
    ids = windows["window_id"].to_pylist()
    assert len(set(ids)) == len(ids) > len(paragraphs) * 3
    writer = WindowWriter(config(tiny_squad, model, teachers=()))
    apart = [writer(squad.to_table([paragraph]))[0] for paragraph in paragraphs]
    assert pa.concat_tables(apart)["window_id"].to_pylist() == ids


def test_counts_are_those_of_the_rows(
    tiny_squad: str, tiny_bert: str, paragraphs: list[squad.Paragraph]
) -> None:
    table, counts = WindowWriter(config(tiny_squad, tiny_bert))(squad.to_table(paragraphs))
    assert counts == {
        "paragraphs": 8,
        "questions": 24,
        "windows": table.num_rows,
        "tokens": sum(map(len, table["input_ids"].to_pylist())),
        "answerable_windows": sum(start > 0 for start in table["start_position"].to_pylist()),
    }


def test_without_a_teacher_logits_are_null(
    tiny_squad: str, tiny_bert: str, paragraphs: list[squad.Paragraph], windows: pa.Table, model: str
) -> None:
    bare = WindowWriter(config(tiny_squad, model, teachers=()))(squad.to_table(paragraphs))[0]
    assert [bare[name].null_count for name in LOGITS] == [bare.num_rows] * 2
    assert bare.drop_columns(LOGITS) == windows.drop_columns(LOGITS)


def test_paragraphs_without_questions_make_no_windows(tiny_squad: str, tiny_bert: str) -> None:
    empty = squad.Paragraph(paragraph_id="p", title="", context="A text.", questions=(), source_id="p")
    table, counts = WindowWriter(config(tiny_squad, tiny_bert))(squad.to_table([empty]))
    assert table.num_rows == counts["windows"] == 0
    assert table.schema == WINDOWS


def test_average_is_the_mean_of_the_teachers_logits(
    tiny_squad: str, tiny_bert: str, other_bert: str, paragraphs: list[squad.Paragraph]
) -> None:
    rows = squad.to_table(paragraphs)
    mine, its = (
        WindowWriter(config(tiny_squad, tiny_bert, teachers=(model,)))(rows)[0]
        for model in (tiny_bert, other_bert)
    )
    mean = WindowWriter(config(tiny_squad, tiny_bert, teachers=(tiny_bert, other_bert)))(rows)[0]
    assert mean.schema == WINDOWS
    assert mean.drop_columns(LOGITS) == mine.drop_columns(LOGITS)
    for name in LOGITS:
        a, b, both = (flat(table, name) for table in (mine, its, mean))
        assert np.abs(a - b).max() > 1
        np.testing.assert_allclose(both, (a + b) / 2, atol=1e-2)


def unlabelled(first: squad.Paragraph, others: list[squad.Paragraph]) -> pa.Table:
    """``first`` as a corpus is asked: nobody has said whether its questions have answers."""
    asked = tuple(replace(question, is_impossible=False, answers=()) for question in first.questions)
    return squad.to_table([replace(first, questions=asked), *others])


def test_questions_that_nobody_answered_have_no_label(
    tiny_squad: str, model: str, windows: pa.Table, paragraphs: list[squad.Paragraph]
) -> None:
    first, *others = paragraphs
    made = WindowWriter(config(tiny_squad, model))(unlabelled(first, others))[0]
    free = {question.id for question in first.questions}
    for name in ("start_position", "end_position"):
        expected = [
            NO_LABEL if question in free else position
            for question, position in zip(
                windows["question_id"].to_pylist(), windows[name].to_pylist(), strict=True
            )
        ]
        assert made[name].to_pylist() == expected
        assert expected != windows[name].to_pylist()


def test_abstain_at_threshold_moves_the_nulls_of_unlabelled_questions_alone(
    tiny_squad: str, tiny_bert: str, paragraphs: list[squad.Paragraph], tmp_path: Path
) -> None:
    teacher = str(shutil.copytree(tiny_bert, tmp_path / "teacher"))
    wanted = config(tiny_squad, tiny_bert, teachers=(teacher,), abstain_at_threshold=True)
    with pytest.raises(InputError, match="teacher: has no fitted threshold"):
        WindowWriter(wanted)
    evaluation = str(tmp_path / "evaluation")
    write_settings(evaluation, ModelSettings(no_answer_threshold=0.01, fitted_on="x"))
    wanted = replace(wanted, settings=(evaluation,))
    shift = np.log(0.99 / 0.01)
    first, *others = paragraphs
    rows = unlabelled(first, others)
    moved = WindowWriter(wanted)(rows)[0]
    plain = WindowWriter(replace(wanted, abstain_at_threshold=False))(rows)[0]
    assert moved.drop_columns(LOGITS) == plain.drop_columns(LOGITS)
    free = {question.id for question in first.questions}
    for name in LOGITS:
        for question, new, old in zip(
            moved["question_id"].to_pylist(), moved[name], plain[name], strict=True
        ):
            difference = np.array(new.as_py(), np.float64) - np.array(old.as_py(), np.float64)
            nulls = shift / 2 if question in free else 0.0
            np.testing.assert_allclose(difference[0], nulls, atol=1e-2)
            assert not difference[1:].any()


@pytest.mark.parametrize("kept", ["average", "apart"])
def test_one_teacher_is_itself_whatever_is_kept_of_several(
    tiny_squad: str, model: str, windows: pa.Table, paragraphs: list[squad.Paragraph], kept: str
) -> None:
    alone = WindowWriter(config(tiny_squad, model, combine=kept))(squad.to_table(paragraphs))[0]
    assert alone == windows


def test_teachers_apart_are_in_columns_of_their_own(
    tiny_squad: str, tiny_bert: str, other_bert: str, paragraphs: list[squad.Paragraph]
) -> None:
    rows = squad.to_table(paragraphs)
    apart = WindowWriter(config(tiny_squad, tiny_bert, teachers=(tiny_bert, other_bert), combine="apart"))
    made = apart(rows)[0]
    assert made.schema == schema(2)
    assert made.schema.names == [*WINDOWS.names, "start_logits_1", "end_logits_1"]
    made.validate(full=True)
    mine, its = (
        WindowWriter(config(tiny_squad, tiny_bert, teachers=(model,)))(rows)[0]
        for model in (tiny_bert, other_bert)
    )
    assert made.select(WINDOWS.names) == mine
    for teacher, table in enumerate((mine, its)):
        for name, column in zip(LOGITS, logit_columns(teacher), strict=True):
            assert made[column] == table[name]


def test_training_reads_each_of_the_teachers_kept_apart(
    tiny_squad: str, tiny_bert: str, other_bert: str, paragraphs: list[squad.Paragraph], tmp_path: Path
) -> None:
    both = (tiny_bert, other_bert)
    read = []
    for name, given in (("both", both), ("mine", both[:1]), ("its", both[1:])):
        asked = config(tiny_squad, tiny_bert, teachers=given, combine="apart")
        path = write(WindowWriter(asked)(squad.to_table(paragraphs))[0], tmp_path / f"{name}.arrow")
        read.append(WindowData([path, path], 0).batch(np.arange(5), np.arange(20)))
    apart, *each = read
    for teacher, alone in enumerate(each):
        assert torch.equal(apart.input_ids, alone.input_ids)
        for side in LOGITS:
            assert torch.equal(getattr(apart, side)[teacher], getattr(alone, side)[0])


def test_tokenizer_is_the_first_teachers_when_not_given(
    tiny_squad: str, windows: pa.Table, model: str, paragraphs: list[squad.Paragraph]
) -> None:
    bare = TeacherLogitsConfig(data=tiny_squad, teachers=(model,), window=WINDOW)
    made = WindowWriter(bare)(squad.to_table(paragraphs))[0]
    assert made == windows
    with pytest.raises(InputError, match="neither tokenizer nor teachers are given"):
        TeacherLogitsConfig(data=tiny_squad)
    with pytest.raises(InputError, match=r"teachers is 'm'; it must be a tuple .* \('m',\)"):
        TeacherLogitsConfig(data=tiny_squad, teachers="m")  # type: ignore[arg-type]


def text_windows(corpus: str, model: str, **options: Any) -> tuple[pa.Table, dict[str, float]]:
    writer = TextWriter(config(corpus, model, teachers=(), **options))
    return writer(next(plain_text.paragraph_tables(corpus)))


def test_windows_of_text_have_the_published_schema_and_teach_no_span(corpus: str, model: str) -> None:
    table, counts = text_windows(corpus, model)
    assert table.schema == WINDOWS
    table.validate(full=True)
    empty = ["question_id", "offsets", *LOGITS]
    assert [table[name].null_count for name in empty] == [table.num_rows] * 4
    required = [name for name in WINDOWS.names if name not in [*empty, "token_type_ids"]]
    assert {name: table[name].null_count for name in required} == dict.fromkeys(required, 0)
    for name in ("start_position", "end_position"):
        assert set(table[name].to_pylist()) == {NO_LABEL}
    ids = table["input_ids"].to_pylist()
    assert counts == {
        "paragraphs": 4,
        "questions": 0,
        "windows": len(ids),
        "tokens": sum(map(len, ids)),
        "answerable_windows": 0,
    }


def test_windows_of_text_hold_each_paragraph_as_its_tokenizer_reads_it(corpus: str, model: str) -> None:
    table, _ = text_windows(corpus, model)
    tokenizer = pretrained.load_tokenizer(model)
    rows = table.to_pylist()
    assert len({row["window_id"] for row in rows}) == len(rows) > 4
    for number, paragraph in enumerate(Path(corpus).read_text("utf-8").split("\n\n")):
        shown = [row["input_ids"] for row in rows if row["paragraph_id"] == f"corpus.txt#{number}"]
        tokens = tokenizer(paragraph, add_special_tokens=False)["input_ids"]
        assert [token for ids in shown for token in ids[1:-1]] == tokens
        if 0 < len(tokens) <= WINDOW.max_seq_len - 2:
            assert shown == [tokenizer(paragraph)["input_ids"]]
        else:
            assert len(shown) == -(-len(tokens) // (WINDOW.max_seq_len - 2))


def test_windows_of_text_do_not_depend_on_how_many_are_cut_together(
    corpus: str, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text_windows(corpus, tiny_bert)
    monkeypatch.setattr(sys.modules[TextWriter.__module__], "_TEXTS_AT_ONCE", 1)
    assert text_windows(corpus, tiny_bert) == whole


def test_training_reads_windows_of_text(corpus: str, model: str, tmp_path: Path) -> None:
    table, _ = text_windows(corpus, model)
    data = WindowData([write(table, tmp_path / "part.arrow")], 1)
    assert (data.logits, data.has_labels) == ([], False)
    rows = np.arange(len(data))
    batch = data.batch(rows, rows)
    assert batch.start_positions.tolist() == batch.end_positions.tolist() == [NO_LABEL] * len(data)
    assert batch.token_mask.sum(1).tolist() == list(map(len, table["input_ids"].to_pylist()))
