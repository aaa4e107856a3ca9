from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "local":
            return str(tmp_path / "made")
        case "memory":
            return f"memory://{uuid.uuid4().hex}/made"
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}/made"


def test_written_bytes_are_read_back(folder: str) -> None:
    path = storage.join(folder, "deep", "a.bin")
    storage.write_atomic(path, b"one")
    storage.write_atomic(path, b"two")
    assert storage.read_bytes(path) == b"two"
    assert [storage.kind(p) for p in (path, folder, path + "x")] == ["file", "folder", "absent"]


def test_files_are_listed_sorted_by_suffix(folder: str) -> None:
    for name in ("b.txt", "a.txt", "c.json", "sub/d.txt"):
        storage.write_atomic(storage.join(folder, name), b"")
    assert storage.list_files(folder, ".txt") == [storage.join(folder, n) for n in ("a.txt", "b.txt")]
    every = [storage.join(folder, n) for n in ("a.txt", "b.txt", "c.json", "sub/d.txt")]
    assert storage.list_files(folder, recursive=True) == every
    assert [storage.read_bytes(path) for path in every] == [b""] * 4


def test_absent_folder_lists_nothing_and_deletes_quietly(folder: str) -> None:
    assert storage.list_files(folder) == []
    assert not storage.names_in(folder)
    storage.delete_folder(folder)


def test_deleted_folder_is_gone(folder: str) -> None:
    storage.write_atomic(storage.join(folder, "sub", "a"), b"")
    assert storage.names_in(folder)
    storage.delete_folder(folder)
    assert storage.kind(folder) == "absent"


@settings(deadline=None, max_examples=25)
@given(st.recursive(st.none() | st.integers() | st.text(st.characters(codec="utf-8")), st.lists))
def test_json_round_trip(value: object) -> None:
    storage.write_json("memory://round/trip.json", value)
    assert storage.read_json("memory://round/trip.json") == value


def test_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    storage.write_atomic(str(tmp_path / "a"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_failed_write_leaves_no_temporary_file_and_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "in the way").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written"):
        storage.write_atomic(str(tmp_path / "a"), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_write_that_breaks_off_leaves_nothing(folder: str) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(100)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_atomic(storage.join(folder, "a"), pieces())
    assert storage.list_files(folder) == []


def test_pieces_larger_than_memory_are_one_object(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_MEMORY", 1000)
    path = storage.join(folder, "a")
    storage.write_atomic(path, (bytes([number]) * 700 for number in range(5)))
    assert storage.read_bytes(path) == b"".join(bytes([number]) * 700 for number in range(5))


def test_absent_bucket_is_refused_by_name(bucket: str) -> None:
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/x: the folder cannot be made"):
        storage.write_atomic("s3://no-such-bucket/x/a", b"x")


def test_wrong_key_of_a_store_is_one_line(bucket: str) -> None:
    from moto.core import set_initial_no_auth_action_count

    with pytest.raises(InputError, match=r"^s3://tinyqa/a: cannot be reached .*ACCESS_DENIED.*credentials"):
        set_initial_no_auth_action_count(0)(storage.kind)(f"{bucket}/a")


def test_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    content = bytes(200_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.write_atomic(str(tmp_path / "a"), content), range(64)))
    assert (tmp_path / "a").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_leftover_of_a_killed_write_is_no_content(tmp_path: Path) -> None:
    (tmp_path / f"a.json.0{storage.LEFTOVER}").touch()
    assert not storage.names_in(str(tmp_path))


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="folder cannot be made"):
        storage.write_atomic(str(tmp_path / "file" / "a"), b"x")


def test_absent_file_is_refused_by_name(folder: str) -> None:
    with pytest.raises(InputError, match=r"nope\.json: no such file"):
        storage.read_json(storage.join(folder, "nope.json"))


def test_folder_read_as_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a readable file"):
        storage.read_bytes(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"{", r"not JSON \(line 1, column 2"), (b'{"a": "\xff"}', "not UTF-8 at byte 7"), (b"", "not JSON")],
)
def test_broken_json_is_refused_with_its_place(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        storage.read_json(str(tmp_path / "a.json"))


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="nosuchscheme"):
        storage.kind("nosuchscheme://a/b")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage.write_atomic("~/a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"
    assert storage.absolute("~/a") == str(tmp_path / "a")


def test_only_plain_paths_are_local(tmp_path: Path) -> None:
    assert storage.is_local(str(tmp_path))
    assert storage.is_local(f"file://{tmp_path}")
    assert not storage.is_local("memory://a")


def test_store_that_does_not_answer_is_one_line_about_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def get_file_info(self, path: str) -> None:
            raise OSError("When resolving region: Could not resolve host:\n nowhere")

    monkeypatch.setattr(storage, "resolve", lambda path: (Silent(), path))
    said = r"^s3://b/d: cannot be reached \(.* host: nowhere\); check .*credentials"
    with pytest.raises(InputError, match=said):
        storage.kind("s3://b/d")


def test_path_that_may_not_be_looked_at_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Closed:
        def get_file_info(self, path: str) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "resolve", lambda path: (Closed(), path))
    with pytest.raises(InputError, match=r"cannot be reached \(Permission denied\); check the path"):
        storage.kind(str(tmp_path))


@pytest.mark.parametrize("where", ["local", "memory", "here"])
def test_pattern_matches_names_in_one_folder_or_in_all(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = {"local": f"{tmp_path}/", "memory": f"memory://{uuid.uuid4().hex}/", "here": ""}[where]
    for name in ("a.pdf", "b+c.pdf", "b.txt", "in/a.pdf", "in/deep/d.pdf"):
        storage.write_atomic(f"{root}{name}", b"x")

    def names(pattern: str) -> list[str]:
        start = len(root or "./")
        return [file.path[start:] for file in storage.matching(f"{root}{pattern}")]

    assert names("*.pdf") == ["a.pdf", "b+c.pdf"]
    assert names("b+*") == ["b+c.pdf"]
    assert names("**/*.pdf") == ["a.pdf", "b+c.pdf", "in/a.pdf", "in/deep/d.pdf"]
    assert names("*/a.pdf") == ["in/a.pdf"]
    assert names("none/*.pdf") == []
