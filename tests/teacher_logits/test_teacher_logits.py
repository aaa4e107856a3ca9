from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import modified
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import tiny

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import shards
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import plain_text, squad
from tinyqa_ray.teacher_logits import TeacherLogitsReport, teacher_logits, work
from tinyqa_ray.teacher_logits.window_dataset import (
    logit_columns,
    schema,
    window_files,
    window_teachers,
    window_tokenizer,
)
from tinyqa_ray.teacher_logits.window_writers import TextWriter, WindowWriter

# Small windows, so that a context takes several.
WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
LOGITS = ["start_logits", "end_logits"]


def config(data: str, tokenizer: str, **options: Any) -> TeacherLogitsConfig:
    given = {"data": data, "tokenizer": tokenizer, "teachers": (tokenizer,), "window": WINDOW, **options}
    return TeacherLogitsConfig(**given)


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


def test_teacher_for_plain_text_is_refused(corpus: str, tiny_bert: str, tmp_path: Path) -> None:
    message = r"corpus\.txt: is plain text, without questions that .* could answer; leave --teachers out"
    for given in (config(corpus, tiny_bert), TeacherLogitsConfig(data=corpus, teachers=(tiny_bert,))):
        with pytest.raises(InputError, match=message):
            teacher_logits(given, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(b"An owl.\n\nA caf\xe9.", r"a\.txt: not UTF-8 at byte 14;"), (b"\n \n", r"text: holds no text;")],
)
def test_text_that_cannot_be_read_is_refused_and_leaves_nothing(
    text: bytes, complaint: str, tiny_bert: str, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(text)
    with pytest.raises(InputError, match=complaint):
        teacher_logits(config(str(tmp_path / "text"), tiny_bert, teachers=()), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def files_of(output: Path) -> dict[str, bytes]:
    """Every file but those that hold times: the mark of success, and what is remembered of the inputs."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in ("_SUCCESS.json", "_INPUTS.json")
    }


def read(folder: Path) -> pa.Table:
    files = window_files(str(folder))
    return pa.concat_tables([pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in files])


def test_teacher_of_another_vocabulary_teaches_and_the_report_tells_how_well_its_tokens_fit(
    tiny_squad: str, tiny_bert: str, tiny_roberta: str, tmp_path: Path, here: list[str]
) -> None:
    options = {"teachers": (tiny_bert, tiny_roberta), "combine": "apart"}
    report = teacher_logits(config(tiny_squad, tiny_bert, **options), str(tmp_path / "both"))
    (own, start), (_, end) = report.start_on_border, report.end_on_border
    assert own is None
    assert start is not None
    assert end is not None
    assert 0.3 < start < 1
    assert 0.3 < end < 1
    assert teacher_logits(config(tiny_squad, tiny_bert, **options), str(tmp_path / "both")) == report
    made = read(tmp_path / "both")
    for name in logit_columns(1):
        values = np.concatenate(made[name].to_pylist())
        assert np.isfinite(values).all()
    alone = teacher_logits(config(tiny_squad, tiny_bert), str(tmp_path / "alone"))
    assert alone.start_on_border == alone.end_on_border == ()
    mine = read(tmp_path / "alone")
    assert made.select(mine.column_names) == mine


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_interrupted_pass_over_text_goes_on_to_the_same_bytes(
    corpus: str, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_text, "_TABLE", 1)  # a file a paragraph
    asked = config(corpus, tiny_bert, teachers=(), rows_per_shard=1)
    report = teacher_logits(asked, str(tmp_path / "whole"))
    assert (report.paragraphs, report.questions, report.answerable_windows) == (4, 0, 0)
    assert report.windows > 4
    whole = files_of(tmp_path / "whole")
    assert len([name for name in whole if name.startswith("_input/part-")]) == 4

    def killed_while_writing_the_input(path: str, table: pa.Table) -> None:
        if path.endswith("part-000002.parquet"):
            raise KeyboardInterrupt
        write_input(path, table)

    def killed_after_two_shards(done: int, total: int) -> None:
        if done >= 2:
            raise KeyboardInterrupt

    def in_this_process(todo: list[shards.Shard], mapper: Any, options: Any, _: object) -> Iterator[int]:
        for shard in todo:
            shards.work(shard, mapper(**options))
            yield shard.rows

    broken = tmp_path / "broken"
    write_input = shards.write_input
    monkeypatch.setattr(shards, "_worked", in_this_process)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_input", killed_while_writing_the_input)
        with pytest.raises(KeyboardInterrupt):
            teacher_logits(asked, str(broken))
    assert len(list((broken / "_input").iterdir())) == 2
    with pytest.raises(KeyboardInterrupt):
        teacher_logits(asked, str(broken), killed_after_two_shards)
    assert not (broken / "_SUCCESS.json").exists()
    assert teacher_logits(asked, str(broken)) == report
    assert files_of(broken) == whole

    files = [pa.ipc.open_stream(pa.memory_map(file)).read_all() for file in window_files(str(broken))]
    made = pa.concat_tables(file.replace_schema_metadata(None) for file in files)
    expected = [TextWriter(asked)(table)[0] for table in plain_text.paragraph_tables(corpus)]
    assert made.to_pylist() == pa.concat_tables(expected).to_pylist()
    assert window_teachers(str(broken)) == ()
    assert window_tokenizer(str(broken)).get_vocab() == tiny.wordpiece_tokenizer().get_vocab()


@pytest.mark.slow
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
    asked = config(tiny_squad, tiny_bert, teachers=(tiny_bert, "m"), combine="apart", rows_per_shard=3)
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

    before = modified.times(tmp_path / "out")
    assert teacher_logits(asked, str(tmp_path / "out")) == report
    assert modified.times(tmp_path / "out") == before


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> int:
    """Most files of a pass of 8 paragraphs, which would be 8 of one paragraph each."""
    monkeypatch.setattr(work, "MOST_FILES", 3)
    monkeypatch.setattr(work, "connected", contextlib.nullcontext)
    return 3


def test_large_pass_has_no_more_files_than_a_store_likes(
    tiny_squad: str, tiny_bert: str, tmp_path: Path, here: list[str], few_files: int
) -> None:
    asked = config(tiny_squad, tiny_bert, teachers=(), rows_per_shard=1)
    report = teacher_logits(asked, str(tmp_path / "out"))
    assert len(window_files(str(tmp_path / "out"))) == few_files
    wide = teacher_logits(replace(asked, rows_per_shard=3), str(tmp_path / "wide"))
    assert wide == report
    for file, other in zip(*map(window_files, (str(tmp_path / "out"), str(tmp_path / "wide"))), strict=True):
        assert Path(file).read_bytes() == Path(other).read_bytes()


@pytest.mark.parametrize("begun_with_limit", [True, False])
def test_pass_that_goes_on_keeps_the_files_it_was_begun_with(
    tiny_squad: str,
    tiny_bert: str,
    tmp_path: Path,
    here: list[str],
    few_files: int,
    monkeypatch: pytest.MonkeyPatch,
    begun_with_limit: bool,
) -> None:
    """Whatever the limit was then, and is now; an earlier version had none."""

    def killed_after_one_shard(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    asked = config(tiny_squad, tiny_bert, teachers=(), rows_per_shard=1)
    output = str(tmp_path / "out")
    with monkeypatch.context() as patch:
        if not begun_with_limit:
            patch.setattr(work, "MOST_FILES", 100)
        with pytest.raises(KeyboardInterrupt):
            teacher_logits(asked, output, killed_after_one_shard)
    if begun_with_limit:
        monkeypatch.setattr(work, "MOST_FILES", 5)
    report = teacher_logits(asked, output)
    assert len(window_files(output)) == (few_files if begun_with_limit else 8)
    assert report.paragraphs == 8
