"""What a machine's processes make once on its disk, and share: made by the first, deleted by the last."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock

from tinyqa_ray.core import storage
from tinyqa_ray.core.local_copies import private_folder

UNUSED_S = 24 * 3600.0
"""A copy that a failed or killed run left behind waits so long for the run to go on."""
_LOCK, _MAKING = ".lock", ".making"


@contextlib.contextmanager
def node_copy(name: str, key: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A folder on this machine's disk that all its processes share under ``key``.

    The first process makes it while the others wait. It is whole or absent. When the block ends, the last
    process that uses the folder deletes it. When the block fails, or its process is killed, the folder stays,
    since a run that goes on will want it again; the next run deletes it once nobody has used it for a day.

    Args:
        name: of the kind of copies, such as "windows".
        key: identifies the content; letters and digits.
        make: fills an empty folder; what it raises passes through, and another process may try again.

    Raises:
        InputError: the folder for copies belongs to somebody else.
    """
    root = private_folder(name)
    _delete_unused(root, key)
    copy = root / key
    lock = _shared(root / f"{key}{_LOCK}")
    try:
        with FileLock(root / f"{key}{_MAKING}"):
            if not copy.exists():
                _made(copy, make)
        yield copy
        # All others let go, or this one is not the last.
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(copy, ignore_errors=True)
    finally:
        os.utime(lock)
        os.close(lock)


def _made(copy: Path, make: Callable[[Path], None]) -> None:
    temporary = copy.with_name(f"{copy.name}{storage.LEFTOVER}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process: this one holds the lock
    temporary.mkdir(mode=0o700)
    try:
        make(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(copy)


def _shared(file: Path) -> int:
    """A shared lock on a file, whose time says when it was last used."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)
    os.utime(lock)
    return lock


def _delete_unused(root: Path, key: str) -> None:
    """Delete the copies of other keys that nobody holds and nobody has held for a day."""
    for file in root.glob(f"*{_LOCK}"):
        name = file.name.removesuffix(_LOCK)
        if name == key or time.time() - file.stat().st_mtime < UNUSED_S:
            continue
        lock = os.open(file, os.O_RDWR | os.O_NOFOLLOW)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for leftover in (root / name, root / f"{name}{storage.LEFTOVER}"):
                    shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(lock)
