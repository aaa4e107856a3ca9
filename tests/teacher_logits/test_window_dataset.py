from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tiny

from tinyqa_ray.configs import AnswerConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub, pretrained
from tinyqa_ray.models.tokenizers import same_tokens
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import (
    FOLDER,
    TOKENIZER,
    WINDOWS,
    logit_columns,
    save_tokenizer,
    schema,
    window_files,
    window_sizes,
    window_teachers,
    window_tokenizer,
)

SIZES = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
REPORT = TeacherLogitsReport(paragraphs=1, questions=0, windows=1, tokens=3, answerable_windows=0)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "made") if request.param == "local" else f"memory://{uuid.uuid4().hex}/made"


def publish(folder: str, tokenizer: str | None, *teachers: str) -> None:
    """A finished stage with an empty file of windows, and the tokenizer of a model."""
    config = TeacherLogitsConfig(data="d.json", tokenizer="t", teachers=teachers, window=SIZES)
    with stage_folder.stage(folder, config) as stage:
        storage.write_atomic(stage.path(FOLDER, "part-000000.arrow"), b"")
        if tokenizer is not None:
            save_tokenizer(pretrained.load_tokenizer(tokenizer), stage.output)
        stage.publish(REPORT)


def kept(folder: str) -> dict[str, bytes]:
    """The files of the tokenizer."""
    names = storage.list_files(storage.join(folder, TOKENIZER))
    return {name.rsplit("/", 1)[-1]: storage.read_bytes(name) for name in names}


def test_finished_folder_tells_its_files_sizes_and_teachers(folder: str, tiny_bert: str) -> None:
    publish(folder, tiny_bert, "one", "two")
    assert window_files(folder) == [storage.join(folder, "windows", "part-000000.arrow")]
    assert window_sizes(folder) == SIZES
    assert window_teachers(folder) == ("one", "two")


def test_teachers_of_the_hub_are_named_with_the_commit_that_was_loaded(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {"deepset/one": "a" * 40, "deepset/two@v1": "b" * 40}
    monkeypatch.setattr(hub, "commit", lambda name, *, is_data=False: commits[name])
    config = TeacherLogitsConfig(data="d.json", tokenizer="t.json", teachers=(*commits, "s3://b/three"))
    with stage_folder.stage(folder, config) as stage:
        hub.pinned(config, stage, "teachers")
        stage.publish(REPORT)
    assert window_teachers(folder) == (
        f"deepset/one@{'a' * 40}",
        f"deepset/two@{'b' * 40}",
        "s3://b/three",
    )


def test_teachers_of_an_older_folder_are_found_under_the_name_they_had(folder: str) -> None:
    publish(folder, None, "one")
    success = storage.join(folder, stage_folder.SUCCESS)
    document = storage.read_json(success)
    document["config"] |= {"model": document["config"].pop("teachers"), "teachers": "average"}
    del document["config"]["combine"]
    storage.write_json(success, document)
    assert window_teachers(folder) == ("one",)


def test_folder_without_teachers_names_none(folder: str) -> None:
    publish(folder, None)
    assert window_teachers(folder) == ()


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_tokenizer_comes_back_as_it_cut(folder: str, family: str, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(f"tiny_{family}"))
    publish(folder, model)
    made, own = window_tokenizer(folder), pretrained.load_tokenizer(model)
    same_tokens(own, made)
    assert made.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
    assert made.name_or_path == storage.join(folder, TOKENIZER)
    text = "Zoë Müller's café, 3.50 francs"
    assert made(text, text) == own(text, text)


def test_student_of_another_vocabulary_is_told_from_the_windows_tokenizer(
    tmp_path: Path, tiny_bert: str, tiny_roberta: str
) -> None:
    publish(str(tmp_path), tiny_bert)
    with pytest.raises(InputError, match=r"student's tokenizer .*roberta.* differ in the ids"):
        same_tokens(pretrained.load_tokenizer(tiny_roberta), window_tokenizer(str(tmp_path)))


def test_equal_tokenizers_are_kept_in_equal_bytes(
    tmp_path: Path, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they were loaded from, and however often they are written."""
    save_tokenizer(pretrained.load_tokenizer(tiny_bert), str(tmp_path / "a"))
    first = kept(str(tmp_path / "a"))
    assert "tokenizer.json" in first
    monkeypatch.setattr("transformers.tokenization_utils_base.is_offline_mode", lambda: False)
    for source in (tiny_bert, str(tmp_path / "a" / TOKENIZER)):
        for output in ("a", "b"):
            save_tokenizer(pretrained.load_tokenizer(source), str(tmp_path / output))
            assert kept(str(tmp_path / output)) == first
    save_tokenizer(tiny.wordpiece_tokenizer(), str(tmp_path / "c"))
    assert kept(str(tmp_path / "c")) == first


@pytest.mark.parametrize("read", [window_files, window_sizes, window_teachers, window_tokenizer])
def test_folder_of_no_finished_pass_is_refused_by_name(read: Any, tmp_path: Path, tiny_bert: str) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="out: no such folder; give the --output of a finished 'teacher-log"):
        read(out)
    save_tokenizer(pretrained.load_tokenizer(tiny_bert), out)
    with pytest.raises(InputError, match=r"out: has no _SUCCESS\.json, so its stage is unfinished"):
        read(out)
    other = AnswerConfig(model="m", documents="d", questions="q")
    with stage_folder.stage(str(tmp_path / "other"), other) as stage:
        stage.publish(REPORT)
    with pytest.raises(InputError, match="other: was made by 'answer'"):
        read(str(tmp_path / "other"))


def test_folder_that_lacks_windows_or_tokenizer_is_refused(folder: str) -> None:
    config = TeacherLogitsConfig(data="d.json", tokenizer="t")
    with stage_folder.stage(folder, config) as stage:
        stage.publish(REPORT)
    with pytest.raises(InputError, match="made: holds no tokenizer, since an older version wrote it"):
        window_tokenizer(folder)
    with pytest.raises(InputError, match="made: holds no windows"):
        window_files(folder)


def test_each_teacher_kept_apart_adds_two_columns() -> None:
    assert schema(0) == schema(1) == WINDOWS
    assert [logit_columns(teacher) for teacher in range(3)] == [
        ("start_logits", "end_logits"),
        ("start_logits_1", "end_logits_1"),
        ("start_logits_2", "end_logits_2"),
    ]
    assert schema(3).names == [*WINDOWS.names, *logit_columns(1), *logit_columns(2)]
    assert set(schema(3).types[len(WINDOWS) :]) == {pa.list_(pa.float16())}
