from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import BertTokenizerFast

from tinyqa_ray import models, squad
from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.teacher_logits import (
    WINDOWS,
    TeacherLogitsReport,
    WindowWriter,
    logit_columns,
    schema,
    teacher_logits,
    window_files,
)
from tinyqa_ray.errors import InputError

# Small windows, so that a context takes several.
WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
LOGITS = ["start_logits", "end_logits"]


@pytest.fixture(params=["bert", "roberta"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture
def paragraphs(tiny_squad: str) -> list[squad.Paragraph]:
    return squad.read_squad(tiny_squad)


def config(data: str, tokenizer: str, **options: Any) -> TeacherLogitsConfig:
    given = {"data": data, "tokenizer": tokenizer, "model": (tokenizer,), "window": WINDOW, **options}
    return TeacherLogitsConfig(**given)


@pytest.fixture(scope="module")
def other_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A second teacher of the tiny BERT's vocabulary."""
    return tiny.save_qa_model(tmp_path_factory.mktemp("other") / "m", layers=1, seed=5)


def flat(table: pa.Table, name: str) -> Any:
    return np.concatenate(table[name].to_pylist()).astype(np.float64)


@pytest.fixture
def windows(tiny_squad: str, model: str, paragraphs: list[squad.Paragraph]) -> pa.Table:
    return WindowWriter(config(tiny_squad, model))(squad.to_table(paragraphs))[0]


def test_windows_have_the_published_schema(windows: pa.Table) -> None:
    assert windows.schema == WINDOWS
    required = [name for name in WINDOWS.names if name != "token_type_ids"]
    assert {name: windows[name].null_count for name in required} == dict.fromkeys(required, 0)
    windows.validate(full=True)


def test_logits_are_unpadded_and_those_of_a_plain_forward(windows: pa.Table, model: str) -> None:
    network = models.load_qa_model(model)
    for row in windows.to_pylist()[::7]:
        assert len(row["start_logits"]) == len(row["end_logits"]) == len(row["input_ids"])
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if row["token_type_ids"] is not None:
            inputs["token_type_ids"] = torch.tensor([row["token_type_ids"]])
        with torch.inference_mode():
            output = network(**inputs)
        np.testing.assert_allclose(row["start_logits"], output.start_logits[0], atol=1e-2)
        np.testing.assert_allclose(row["end_logits"], output.end_logits[0], atol=1e-2)


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


def test_window_ids_are_unique_and_stay(
    windows: pa.Table, tiny_squad: str, model: str, paragraphs: list[squad.Paragraph]
) -> None:
    ids = windows["window_id"].to_pylist()
    assert len(set(ids)) == len(ids) > len(paragraphs) * 3
    writer = WindowWriter(config(tiny_squad, model, model=()))
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
    bare = WindowWriter(config(tiny_squad, model, model=()))(squad.to_table(paragraphs))[0]
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
        WindowWriter(config(tiny_squad, tiny_bert, model=(model,)))(rows)[0]
        for model in (tiny_bert, other_bert)
    )
    mean = WindowWriter(config(tiny_squad, tiny_bert, model=(tiny_bert, other_bert)))(rows)[0]
    assert mean.schema == WINDOWS
    assert mean.drop_columns(LOGITS) == mine.drop_columns(LOGITS)
    for name in LOGITS:
        a, b, both = (flat(table, name) for table in (mine, its, mean))
        assert np.abs(a - b).max() > 1
        np.testing.assert_allclose(both, (a + b) / 2, atol=1e-2)


@pytest.mark.parametrize("kept", ["average", "apart"])
def test_one_teacher_is_itself_whatever_is_kept_of_several(
    tiny_squad: str, model: str, windows: pa.Table, paragraphs: list[squad.Paragraph], kept: str
) -> None:
    alone = WindowWriter(config(tiny_squad, model, teachers=kept))(squad.to_table(paragraphs))[0]
    assert alone == windows


def test_teachers_apart_are_in_columns_of_their_own(
    tiny_squad: str, tiny_bert: str, other_bert: str, paragraphs: list[squad.Paragraph]
) -> None:
    rows = squad.to_table(paragraphs)
    apart = WindowWriter(config(tiny_squad, tiny_bert, model=(tiny_bert, other_bert), teachers="apart"))
    made = apart(rows)[0]
    assert made.schema == schema(2)
    assert made.schema.names == [*WINDOWS.names, "start_logits_1", "end_logits_1"]
    made.validate(full=True)
    mine, its = (
        WindowWriter(config(tiny_squad, tiny_bert, model=(model,)))(rows)[0]
        for model in (tiny_bert, other_bert)
    )
    assert made.select(WINDOWS.names) == mine
    for teacher, table in enumerate((mine, its)):
        for name, column in zip(LOGITS, logit_columns(teacher), strict=True):
            assert made[column] == table[name]


def test_training_reads_windows_of_teachers_apart_as_the_first_ones(
    tiny_squad: str, tiny_bert: str, other_bert: str, paragraphs: list[squad.Paragraph], tmp_path: Path
) -> None:
    both = {"model": (tiny_bert, other_bert), "teachers": "apart"}
    read = []
    for name, options in (("first", {}), ("apart", both)):
        made = WindowWriter(config(tiny_squad, tiny_bert, **options))(squad.to_table(paragraphs))[0]
        path = tmp_path / f"{name}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        data = WindowData([str(path), str(path)], 0)
        assert data.has_logits
        read.append(data.batch(np.arange(5), np.arange(20)))
    first, apart = read
    for field in ("input_ids", "token_mask", "start_positions", "start_logits", "end_logits"):
        assert torch.equal(getattr(first, field), getattr(apart, field))


def test_tokenizer_is_the_first_teachers_when_not_given(
    tiny_squad: str, windows: pa.Table, model: str, paragraphs: list[squad.Paragraph]
) -> None:
    bare = TeacherLogitsConfig(data=tiny_squad, model=(model,), window=WINDOW)
    made = WindowWriter(bare)(squad.to_table(paragraphs))[0]
    assert made == windows
    with pytest.raises(InputError, match="neither tokenizer nor model is given"):
        TeacherLogitsConfig(data=tiny_squad)
    with pytest.raises(InputError, match=r"model is 'm'; it must be a tuple .* \('m',\)"):
        TeacherLogitsConfig(data=tiny_squad, model="m")  # type: ignore[arg-type]


def test_every_teacher_of_another_vocabulary_is_refused_by_name(
    tiny_squad: str, tiny_bert: str, tiny_roberta: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        teacher_logits(config(tiny_squad, tiny_bert, model=(tiny_bert, tiny_roberta)), str(tmp_path / "out"))
    assert tiny_bert in str(caught.value)
    assert f"the teacher's {tiny_roberta!r} differ" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_teacher_that_cuts_texts_otherwise_is_refused_with_text_and_tokens(
    tiny_squad: str, tiny_bert: str, tmp_path: Path
) -> None:
    cased = str(tmp_path / "cased")
    shutil.copytree(tiny_bert, cased)
    vocabulary = tiny.wordpiece_tokenizer().get_vocab()
    BertTokenizerFast(vocab=vocabulary, do_lower_case=False).save_pretrained(cased)
    with pytest.raises(InputError) as caught:
        teacher_logits(config(tiny_squad, tiny_bert, model=(tiny_bert, cased)), str(tmp_path / "out"))
    message = str(caught.value)
    assert f"the teacher's {cased!r} read 'Who is it?' as other tokens: 'who' and '[UNK]'" in message
    assert "agree on case" in message
    assert not (tmp_path / "out").exists()


def test_windows_longer_than_the_teacher_reads_are_refused(
    tiny_squad: str, tiny_bert: str, tmp_path: Path
) -> None:
    long = config(tiny_squad, tiny_bert, window=WindowConfig(max_seq_len=600))
    with pytest.raises(InputError, match=r"max_seq_len is 600, but .* reads at most 512"):
        teacher_logits(long, str(tmp_path / "out"))


def test_folder_that_is_no_paragraphs_is_refused_before_ray_starts(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "data" / "part.parquet")
    with pytest.raises(InputError, match=r"part\.parquet: lacks paragraph_id"):
        teacher_logits(config(str(tmp_path / "data"), tiny_bert), str(tmp_path / "out"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_writes_the_windows_of_every_paragraph_once(
    tiny_squad: str,
    tiny_bert: str,
    other_bert: str,
    paragraphs: list[squad.Paragraph],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Names relative to this folder, which is not the actors'.
    monkeypatch.chdir(Path(other_bert).parent)
    asked = config(tiny_squad, tiny_bert, model=(tiny_bert, "m"), teachers="apart", rows_per_shard=3)
    report = teacher_logits(asked, str(tmp_path / "out"))
    files = window_files(str(tmp_path / "out"))
    assert len(files) == 3
    tables = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in files]
    assert {table.schema.equals(schema(2), check_metadata=False) for table in tables} == {True}
    made = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    expected, counts = WindowWriter(replace(asked, rows_per_shard=64))(squad.to_table(paragraphs))
    logits = [*LOGITS, *logit_columns(1)]
    assert made.drop_columns(logits).to_pylist() == expected.drop_columns(logits).to_pylist()
    for name in logits:
        mine, its = (np.concatenate(table[name].to_pylist()) for table in (made, expected))
        np.testing.assert_allclose(mine, its, atol=1e-2)
    assert report == TeacherLogitsReport(**{name: int(value) for name, value in counts.items()})

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert teacher_logits(asked, str(tmp_path / "out")) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
