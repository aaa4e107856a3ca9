from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyqa_ray.core import contents, storage
from tinyqa_ray.core.contents import Contents

LONG_AGO_S = 1e9


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    contents._known.clear()
    yield
    contents._known.clear()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read to be hashed."""
    files: list[str] = []
    chunks = storage.chunks

    def noted(path: str) -> Iterator[bytes]:
        files.append(path)
        return chunks(path)

    monkeypatch.setattr(storage, "chunks", noted)
    return files


def written(file: Path, text: str, modified_s: float = LONG_AGO_S) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    os.utime(file, (modified_s, modified_s))
    return str(file)


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(content)
        (tmp_path / name / "y").write_bytes(b"same")
    a, b, c = (contents.identity(str(tmp_path / name)) for name in "abc")
    assert a == b != c
    assert contents.identity(str(tmp_path / "a" / "x")) != contents.identity(str(tmp_path / "c" / "x"))


def test_identity_of_a_folder_counts_file_names(tmp_path: Path) -> None:
    for name, files in (("a", ("1", "2")), ("b", ("1", "3"))):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"same")
    assert contents.identity(str(tmp_path / "a")) != contents.identity(str(tmp_path / "b"))


def test_notes_beside_a_model_do_not_change_its_identity(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = contents.identity(str(tmp_path))
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "tinyqa.json").write_text("{}")
    assert contents.identity(str(tmp_path)) == before


def test_identity_of_a_hub_id_is_its_name() -> None:
    assert contents.identity("somebody/some-model") == "somebody/some-model"


def test_input_that_did_not_change_is_not_read_again(tmp_path: Path, read: list[str]) -> None:
    corpus = [written(tmp_path / "in" / name, "text") for name in ("a.txt", "b.txt")]
    manifest = str(tmp_path / "manifest.json")
    first = Contents(manifest)
    before = first.identity(str(tmp_path / "in"))
    assert read == corpus
    first.save()
    contents._known.clear()  # as in another process
    assert Contents(manifest).identity(str(tmp_path / "in")) == before
    assert read == corpus


def test_input_of_several_stages_is_read_once_a_process(tmp_path: Path, read: list[str]) -> None:
    file = written(tmp_path / "a.json", "text")
    assert len({Contents(str(tmp_path / name)).identity(file) for name in "xyz"}) == 1
    assert read == [file]


@pytest.mark.parametrize("change", ["size", "time", "name"])
def test_input_that_changed_is_seen(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "in"
    written(folder / "a.txt", "one")
    written(folder / "b.txt", "two")
    known = Contents(str(tmp_path / "manifest.json"))
    before = known.identity(str(folder))
    known.save()
    match change:
        case "size":
            written(folder / "a.txt", "ones")
        case "time":
            written(folder / "a.txt", "uno", LONG_AGO_S + 1)
        case _:
            (folder / "a.txt").rename(folder / "c.txt")
    assert Contents(str(tmp_path / "manifest.json")).identity(str(folder)) != before


def test_file_that_was_only_touched_is_the_same(tmp_path: Path) -> None:
    before = contents.identity(written(tmp_path / "a", "text"))
    assert contents.identity(written(tmp_path / "a", "text", LONG_AGO_S + 5)) == before


def test_file_written_just_now_is_read_again_since_its_time_says_little(
    tmp_path: Path, read: list[str]
) -> None:
    known = Contents(str(tmp_path / "manifest.json"))
    now = time.time()
    before = known.identity(written(tmp_path / "a", "one", now))
    assert known.identity(written(tmp_path / "a", "two", now)) != before
    assert len(read) == 2
    known.save()
    assert not (tmp_path / "manifest.json").exists()


def test_store_without_times_is_read_each_time(read: list[str]) -> None:
    file = f"memory://{uuid.uuid4().hex}/a"
    storage.write_atomic(file, b"one")
    before = contents.identity(file)
    storage.write_atomic(file, b"two")
    assert contents.identity(file) != before
    assert len(read) == 2


def test_pattern_is_the_content_of_the_files_that_match_it(tmp_path: Path) -> None:
    for name in ("a.md", "b.md", "c.txt"):
        (tmp_path / name).write_text(name)
    pattern = f"{tmp_path}/*.md"
    before = contents.identity(pattern)
    assert before.startswith("sha256 ")
    (tmp_path / "c.txt").write_text("other")
    assert contents.identity(pattern) == before
    (tmp_path / "b.md").write_text("other")
    assert contents.identity(pattern) != before


def test_markdown_counts_where_the_whole_folder_does(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one")
    before = [Contents().identity(str(tmp_path), whole=whole) for whole in (False, True)]
    (tmp_path / "a.md").write_text("another")
    after = [Contents().identity(str(tmp_path), whole=whole) for whole in (False, True)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]
