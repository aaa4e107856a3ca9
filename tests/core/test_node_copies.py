from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tinyqa_ray.core.node_copies import UNUSED_S, node_copy


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of these tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class Maker:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        self.made += 1
        time.sleep(0.05)
        (folder / "a").write_text("content")


def folders(temporary: Path) -> list[str]:
    return sorted(path.name for path in temporary.glob("*/*") if path.is_dir())


def test_processes_share_one_copy_and_the_last_deletes_it(temporary: Path) -> None:
    """Threads stand for processes: each opens the lock's file for itself."""
    make, inside = Maker(), threading.Barrier(3, timeout=60)
    seen: list[str] = []

    def use() -> None:
        with node_copy("test", "abc", make) as copy:
            seen.append((copy / "a").read_text())
            inside.wait()
        inside.wait()

    others = [threading.Thread(target=use) for _ in range(2)]
    for thread in others:
        thread.start()
    with node_copy("test", "abc", make) as copy:
        inside.wait()
        assert copy.stat().st_mode & 0o077 == 0
    inside.wait()
    for thread in others:
        thread.join()
    assert (make.made, seen) == (1, ["content"] * 2)
    assert folders(temporary) == []


def test_first_to_leave_does_not_delete_what_another_uses(temporary: Path) -> None:
    make = Maker()
    with node_copy("test", "abc", make) as copy:
        with node_copy("test", "abc", make):
            pass
        assert (copy / "a").read_text() == "content"
    assert folders(temporary) == []


def test_copy_of_a_run_that_failed_is_found_again(temporary: Path) -> None:
    make = Maker()

    def fail() -> None:
        with node_copy("test", "abc", make):
            raise RuntimeError("the loss is not finite")

    with pytest.raises(RuntimeError):
        fail()
    with node_copy("test", "abc", make) as copy:
        assert (copy / "a").exists()
    assert make.made == 1


def test_copy_of_a_killed_process_is_found_again(temporary: Path) -> None:
    code = (
        "import os, signal, sys, tempfile\nfrom tinyqa_ray.core.node_copies import node_copy\n"
        f"tempfile.tempdir = {str(temporary)!r}\n"
        "with node_copy('test', 'abc', lambda folder: (folder / 'a').write_text('content')):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    make = Maker()
    with node_copy("test", "abc", make) as copy:
        assert (copy / "a").read_text() == "content"
    assert make.made == 0
    assert folders(temporary) == []


def torn(folder: Path) -> None:
    (folder / "half").write_text("torn")
    raise OSError("no space left")


def test_copy_that_could_not_be_made_leaves_nothing(temporary: Path) -> None:
    with pytest.raises(OSError, match="no space left"), node_copy("test", "abc", torn):
        pytest.fail("there is no copy")
    assert folders(temporary) == []
    make = Maker()
    with node_copy("test", "abc", make):
        assert make.made == 1


def test_copies_that_nobody_used_for_a_day_are_deleted_by_the_next_run(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("old", "fresh"):
        with pytest.raises(RuntimeError), node_copy("test", key, Maker()):
            raise RuntimeError
    (root,) = temporary.iterdir()
    long_ago = time.time() - UNUSED_S - 60
    os.utime(root / "old.lock", (long_ago, long_ago))
    with node_copy("test", "other", Maker()):
        assert folders(temporary) == ["fresh", "other"]


def test_copy_in_use_is_kept_however_old(temporary: Path) -> None:
    with node_copy("test", "old", Maker()) as copy:
        (root,) = temporary.iterdir()
        os.utime(root / "old.lock", (0, 0))
        with node_copy("test", "other", Maker()):
            assert (copy / "a").exists()


def test_kinds_of_copies_are_apart(temporary: Path) -> None:
    with node_copy("one", "abc", Maker()) as one, node_copy("other", "abc", Maker()) as other:
        assert one != other
