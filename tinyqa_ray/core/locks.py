"""One run at a time in a folder: a lock, on a disk or a store, that ends when its process dies.

On a disk the operating system holds the lock, and releases it when the process dies. A store has no locks:
there a run writes an object ``_LOCK-….json``, and changes it every few seconds as long as it lives. A run
that finds the object of another run watches it: if it changes, the other run lives; if it does not change
for ``DEAD_S``, it is deleted. Two runs that begin at the same moment see each other, and both are refused.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError, StoreError

LOCK = "_LOCK"
"""Beginning of the names of lock files, which are in a folder while a run works in it."""
BEAT_S = 5.0
"""Time between two heartbeats of a run on a store."""
DEAD_S = 30.0
"""A run on a store without a heartbeat for this long counts as dead."""

_log = logging.getLogger(__name__)
_held: set[str] = set()
"""Names of the locks that this process holds on stores."""


class LostLockError(InputError):
    """Another run took this one for dead, and took its folder over."""


class Lock:
    """A lock that is held on a folder."""

    def check(self) -> None:
        """Raise ``LostLockError`` if another run has taken the folder over; on a disk that cannot happen."""


@contextlib.contextmanager
def held(folder: str) -> Iterator[Lock]:
    """Hold the lock of a folder, which is created if it is absent.

    Raises:
        InputError: another run works in it.
    """
    storage.make_folder(folder)
    hold = _on_disk if storage.is_local(folder) else _on_store
    with hold(folder) as lock:
        yield lock


@contextlib.contextmanager
def _on_disk(folder: str) -> Iterator[Lock]:
    file = Path(storage.resolve(folder)[1]) / LOCK
    lock = FileLock(file, timeout=0.2)
    try:
        lock.acquire()
    except Timeout:
        raise _refused(folder, _read(str(file))) from None
    except OSError as error:
        mistake = f"{folder}: cannot be written to ({error.strerror}); choose another --output"
        raise faults.refused(folder, error, mistake) from None
    try:
        file.write_text(json.dumps(_myself()))
        yield Lock()
    finally:
        file.unlink(missing_ok=True)  # a run that waits for the lock sees this, and makes a new file
        lock.release()


@contextlib.contextmanager
def _on_store(folder: str) -> Iterator[Lock]:
    lock = _StoreLock(folder)
    lock.say()
    try:
        for other in lock.others():
            if not _is_dead(other):
                raise _refused(folder, _read(other))
            storage.delete_file(other)
        lock.holding = True
        lock.say()
        with lock.beating():
            yield lock
    finally:
        lock.leave()


class _StoreLock(Lock):
    """The lock of a run on a store: its object in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.name = uuid.uuid4().hex
        self.file = storage.join(folder, f"{LOCK}-{self.name}.json")
        self.holding = False
        self.beats = 0
        self.stop = threading.Event()
        self.lost = False
        _held.add(self.name)

    def say(self) -> None:
        """Write the object, as a heartbeat of this run."""
        self.beats += 1
        said = {**_myself(), "holding": self.holding, "beats": self.beats}
        storage.write_json(self.file, said)

    def others(self) -> list[str]:
        """The objects of other runs."""
        return [file for file in objects(self.folder) if file != self.file]

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def _beat(self) -> None:
        while not self.stop.wait(BEAT_S):
            self._say_again()

    def _say_again(self) -> None:
        try:
            # If a run that took this one for dead deleted it, writing it again would make two holders.
            self.lost = self.lost or storage.kind(self.file) == "absent"
            if not self.lost:
                self.say()
        except (InputError, StoreError) as error:  # the store may answer the next time
            _log.warning("the lock of %s was not renewed: %s", self.folder, error)

    def check(self) -> None:
        if self.lost or storage.kind(self.file) == "absent":
            raise LostLockError(
                f"{self.folder}: another run took this one for dead, because its lock was not renewed for "
                f"{DEAD_S:g} s, and works in the folder now; this one stops"
            )

    def leave(self) -> None:
        storage.delete_file(self.file)
        _held.discard(self.name)


def objects(folder: str) -> list[str]:
    """The lock objects in a folder of a store."""
    return [file for file in storage.list_files(folder, ".json") if is_lock(file)]


def is_lock(path: str) -> bool:
    """Whether a file belongs to a lock."""
    return path.rsplit("/", 1)[-1].startswith(LOCK)


def _is_dead(file: str) -> bool:
    """Whether the run that wrote a lock object is dead, or has ended by now."""
    first = _read(file)
    if first.get("processes_of") == _processes_of():
        if first["process"] == os.getpid():
            return not any(name in file for name in _held)
        if not _exists(int(first["process"])):
            return True
    if not first.get("holding", True):
        return False  # it begins at this moment
    _log.warning(
        "the folder is locked by %s; waiting up to %g s to see whether it still lives", _who(first), DEAD_S
    )
    until = time.monotonic() + DEAD_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 5)
        if storage.kind(file) == "absent":
            return True
        if _read(file) != first:
            return False
    return True


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process of another user
        return True
    return True


def _myself() -> dict[str, Any]:
    return {"host": platform.node(), "process": os.getpid(), "processes_of": _processes_of()}


@functools.cache
def _processes_of() -> str:
    """A string that identifies where process ids are unique: this machine, or a container on it."""
    boot, numbers = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists() and numbers.exists():
        return f"{boot.read_text().strip()} {numbers.readlink()}"
    return f"{platform.node()} {uuid.getnode()}"


def _read(file: str) -> dict[str, Any]:
    """What a lock file says about its run; empty if it is just being written, or is gone."""
    try:
        found = storage.read_json(file)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


def _who(said: dict[str, Any]) -> str:
    return f"process {said['process']} on {said['host']}" if "process" in said else "another process"


def _refused(folder: str, said: dict[str, Any]) -> InputError:
    return InputError(
        f"{folder}: another run works in it ({_who(said)}); wait for its end, or choose another --output"
    )
