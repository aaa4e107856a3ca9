from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core import locks, storage
from tinyqa_ray.core.errors import InputError


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/out"


@pytest.fixture
def store() -> str:
    return f"memory://{uuid.uuid4().hex}/out"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a moment, and a patience of many of them."""
    monkeypatch.setattr(locks, "BEAT_S", 0.02)
    monkeypatch.setattr(locks, "DEAD_S", 1.0)


def write_lock(folder: str, **said: Any) -> str:
    """The lock of a run elsewhere."""
    file = storage.join(folder, f"{locks.LOCK}-other.json")
    elsewhere = {"host": "node-7", "process": 12, "processes_of": "another machine", "holding": True}
    storage.write_json(file, {**elsewhere, "beats": 1, **said})
    return file


def test_second_run_is_refused_by_name_and_the_next_is_let_in(folder: str) -> None:
    for _ in range(2):
        with locks.held(folder):
            who = f"process {os.getpid()} on "
            with pytest.raises(InputError, match=f"another run works in it .{who}"), locks.held(folder):
                pass
            with pytest.raises(InputError, match="wait for its end, or choose another --output"):
                locks.held(folder).__enter__()
    assert not storage.names_in(folder), "nothing of the lock is left"


def test_error_within_lets_the_folder_go(folder: str) -> None:
    with pytest.raises(ZeroDivisionError), locks.held(folder):
        raise ZeroDivisionError
    with locks.held(folder):
        pass


def test_killed_run_does_not_hold_a_folder_on_a_disk(tmp_path: Path) -> None:
    holding = (
        "import sys; from tinyqa_ray.core import locks; hold = locks.held(sys.argv[1]); hold.__enter__(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holding, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {other.pid} on "), locks.held(str(tmp_path)):
            pass
        other.kill()
        other.wait()
        with locks.held(str(tmp_path)):
            assert json.loads((tmp_path / locks.LOCK).read_text())["process"] == os.getpid()


def test_folder_that_may_not_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*given: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(locks.FileLock, "acquire", closed)
    with pytest.raises(InputError, match=r"cannot be written to \(Permission denied\)"):
        locks.held(str(tmp_path)).__enter__()


def test_dead_process_of_this_machine_is_known_at_once(store: str) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    write_lock(store, process=ended.pid, processes_of=locks._processes_of())
    with locks.held(store):
        assert len(locks.objects(store)) == 1


@pytest.mark.usefixtures("quick")
def test_silent_run_of_another_machine_is_taken_for_dead(store: str) -> None:
    write_lock(store)
    with locks.held(store):
        assert len(locks.objects(store)) == 1


@pytest.mark.usefixtures("quick")
def test_run_of_another_machine_that_lives_is_not_disturbed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "DEAD_S", 600.0)
    file = write_lock(store)
    first_look = threading.Event()
    read = locks._read

    def noted(path: str) -> dict[str, Any]:
        found = read(path)
        first_look.set()
        return found

    monkeypatch.setattr(locks, "_read", noted)

    def live() -> None:
        first_look.wait()
        write_lock(store, beats=2)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(InputError, match=r"another run works in it \(process 12 on node-7\)"):
        locks.held(store).__enter__()
    thread.join()
    assert locks.objects(store) == [file]


def test_runs_that_begin_together_are_both_refused_rather_than_both_let_in(store: str) -> None:
    write_lock(store, holding=False)
    with pytest.raises(InputError, match="another run works in it"):
        locks.held(store).__enter__()


@pytest.mark.usefixtures("quick")
def test_holder_says_again_and_again_that_it_lives(store: str) -> None:
    with locks.held(store):
        (file,) = locks.objects(store)
        seen = locks._read(file).get("beats", 0)
        # Read as other runs do: this store, unlike S3, shows a file that is just being written.
        while locks._read(file).get("beats", 0) < seen + 3:
            pass


@pytest.mark.usefixtures("quick")
def test_run_that_was_taken_for_dead_stops_and_does_not_take_its_folder_back(store: str) -> None:
    with locks.held(store) as lock:
        lock.check()
        (file,) = locks.objects(store)
        storage.delete_file(file)
        # Between a look at the lock and the next word, a beat may have written it once more.
        while not lock.lost:  # type: ignore[attr-defined]
            if storage.kind(file) == "file":
                storage.delete_file(file)
        with pytest.raises(InputError, match="took this one for dead"):
            lock.check()
