from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import torch

from tinyqa_ray import models, squad
from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.distill.teacher_logits import (
    WINDOWS,
    TeacherLogitsReport,
    WindowWriter,
    teacher_logits,
    window_files,
)
from tinyqa_ray.errors import InputError

# Small windows, so that a context takes several.
WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)


@pytest.fixture(params=["bert", "roberta"])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(f"tiny_{request.param}"))


@pytest.fixture
def paragraphs(tiny_squad: str) -> list[squad.Paragraph]:
    return squad.read_squad(tiny_squad)


def config(data: str, tokenizer: str, **options: Any) -> TeacherLogitsConfig:
    given = {"data": data, "tokenizer": tokenizer, "model": tokenizer, "window": WINDOW, **options}
    return TeacherLogitsConfig(**given)


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
    writer = WindowWriter(config(tiny_squad, model, model=None))
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
    bare = WindowWriter(config(tiny_squad, model, model=None))(squad.to_table(paragraphs))[0]
    logits = ["start_logits", "end_logits"]
    assert [bare[name].null_count for name in logits] == [bare.num_rows] * 2
    assert bare.drop_columns(logits) == windows.drop_columns(logits)


def test_paragraphs_without_questions_make_no_windows(tiny_squad: str, tiny_bert: str) -> None:
    empty = squad.Paragraph(paragraph_id="p", title="", context="A text.", questions=(), source_id="p")
    table, counts = WindowWriter(config(tiny_squad, tiny_bert))(squad.to_table([empty]))
    assert table.num_rows == counts["windows"] == 0
    assert table.schema == WINDOWS


def test_teacher_of_another_vocabulary_is_refused_with_both_named(
    tiny_squad: str, tiny_bert: str, tiny_roberta: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        teacher_logits(config(tiny_squad, tiny_bert, model=tiny_roberta), str(tmp_path / "out"))
    assert tiny_bert in str(caught.value)
    assert tiny_roberta in str(caught.value)
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
    tiny_squad: str, tiny_bert: str, paragraphs: list[squad.Paragraph], tmp_path: Path
) -> None:
    asked = config(tiny_squad, tiny_bert, rows_per_shard=3)
    report = teacher_logits(asked, str(tmp_path / "out"))
    files = window_files(str(tmp_path / "out"))
    assert len(files) == 3
    tables = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in files]
    assert {table.schema.equals(WINDOWS, check_metadata=False) for table in tables} == {True}
    made = pa.concat_tables(table.replace_schema_metadata(None) for table in tables)
    expected, counts = WindowWriter(replace(asked, rows_per_shard=64))(squad.to_table(paragraphs))
    logits = ["start_logits", "end_logits"]
    assert made.drop_columns(logits).to_pylist() == expected.drop_columns(logits).to_pylist()
    for name in logits:
        mine, its = (np.concatenate(table[name].to_pylist()) for table in (made, expected))
        np.testing.assert_allclose(mine, its, atol=1e-2)
    assert report == TeacherLogitsReport(**{name: int(value) for name, value in counts.items()})

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert teacher_logits(asked, str(tmp_path / "out")) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
