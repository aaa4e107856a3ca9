from __future__ import annotations

import os
import tempfile
import threading
import uuid
from pathlib import Path

import pytest

from tinyqa_ray.core import local_copies, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.local_copies import LocalCopies


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of these tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def url() -> str:
    url = f"memory://{uuid.uuid4().hex}/a.arrow"
    storage.write_atomic(url, b"content")
    return url


def held(temporary: Path) -> list[Path]:
    """Files that are kept, beside locks."""
    return [each for each in temporary.rglob("*") if each.is_file() and each.stat().st_size]


def test_local_file_is_not_copied(tmp_path: Path, temporary: Path) -> None:
    assert LocalCopies().path(str(tmp_path / "a.arrow")) == str(tmp_path / "a.arrow")
    assert list(temporary.iterdir()) == []


def test_file_behind_a_url_is_copied_once_for_all(url: str, temporary: Path) -> None:
    one, other = LocalCopies(), LocalCopies()
    path = one.path(url)
    number = Path(path).stat().st_ino
    assert Path(path).read_bytes() == b"content"
    assert one.path(url) == other.path(url) == path
    assert Path(path).stat().st_ino == number
    assert [str(file) for file in held(temporary)] == [path]


def test_process_that_comes_while_another_copies_waits_for_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, lock = local_copies._download, local_copies.FileLock
    copied, locked, came = [], [], threading.Event()
    one, other = LocalCopies(), LocalCopies()
    second = threading.Thread(target=lambda: other.path(url))

    def slow(file: str, copy: Path) -> None:
        copied.append(file)
        if len(copied) == 1:
            second.start()
            assert came.wait(120)
        came.set()
        download(file, copy)

    def announced(path: str) -> object:
        locked.append(path)
        if len(locked) == 2:
            came.set()
        return lock(path)

    monkeypatch.setattr(local_copies, "_download", slow)
    monkeypatch.setattr(local_copies, "FileLock", announced)
    one.path(url)
    second.join()
    assert copied == [url]
    assert len(locked) == 2


def test_file_that_changed_is_copied_anew(url: str) -> None:
    copies = LocalCopies()
    before = copies.path(url)
    storage.write_atomic(url, b"other content")
    assert Path(copies.path(url)).read_bytes() == b"other content"
    assert Path(before).read_bytes() == b"content", "it may still be read"


def test_last_to_go_deletes_the_copies(url: str, temporary: Path) -> None:
    one, other = LocalCopies(), LocalCopies()
    one.path(url)
    path = other.path(url)
    del one
    assert Path(path).read_bytes() == b"content"
    del other
    assert held(temporary) == []


def test_what_a_killed_process_left_is_deleted_by_the_next_that_finds_nobody(
    url: str, temporary: Path
) -> None:
    one = LocalCopies()
    path = one.path(url)
    left = Path(path).with_name("left.tmp")
    left.write_bytes(b"half")
    other = LocalCopies()
    other.path(url)
    assert left.exists(), "it may be another's that works on it"
    del one, other
    left.write_bytes(b"half")
    third = LocalCopies()
    third.path(url)
    assert not left.exists()
    assert Path(path).read_bytes() == b"content"


def test_copy_that_was_broken_off_is_made_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(source: object, target: object, length: int) -> None:
        target.write(b"con")  # type: ignore[attr-defined]
        raise Killed

    copies = LocalCopies()
    with monkeypatch.context() as patch:
        patch.setattr(local_copies.shutil, "copyfileobj", killed)
        with pytest.raises(Killed):
            copies.path(url)
    assert Path(copies.path(url)).read_bytes() == b"content"


def test_copy_that_finds_no_room_says_where_more_can_be_had(
    url: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object, length: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(local_copies.shutil, "copyfileobj", full)
    with pytest.raises(InputError, match=r"a\.arrow: cannot be copied to .*No space left.*; .* set TMPDIR"):
        LocalCopies().path(url)
    assert held(temporary) == []


@pytest.mark.parametrize("kind", ["link", "open to others", "another's"])
def test_folder_that_others_can_write_to_is_refused(
    url: str, tmp_path: Path, temporary: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = temporary / f"tinyqa-copies-{os.getuid()}"
    if kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "theirs")
    elif kind == "open to others":
        folder.mkdir()
        folder.chmod(0o770)
    else:
        me = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.raises(
        InputError, match=r"tinyqa-copies-\d+: is not a folder that is yours alone.*; delete it"
    ):
        LocalCopies().path(url)


def test_folder_is_closed_to_others(url: str) -> None:
    copies = LocalCopies()
    assert Path(copies.path(url)).parent.stat().st_mode & 0o777 == 0o700
