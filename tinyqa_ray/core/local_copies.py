"""Copies of files behind a URL on a machine's own disk: made once, shared by its processes, and deleted."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
import weakref
from pathlib import Path

from filelock import FileLock

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

_CHUNK = 1 << 22
_LOCK = "lock"
"""File that every process which uses the folder holds a shared lock on."""


class LocalCopies:
    """Local paths of files; one behind a URL is copied when it is first asked for.

    All processes of a user on a machine share one folder, which is closed to others, in the folder of
    temporary files (``TMPDIR``). It is used as long as any of these objects lives: the last to go deletes
    the copies. A process that was killed leaves some behind; the next that comes to an unused folder
    deletes them. A copy is whole or absent, and found again by its URL, size and time.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def path(self, file: str) -> str:
        """The path of a file, or of its copy, which stays while this object lives.

        Raises:
            InputError: the file cannot be copied, or the folder for it belongs to somebody else.
        """
        filesystem, inner = storage.resolve(file)
        if storage.is_local(file):
            return inner
        if self._folder is None:
            self._folder, lock = _entered()
            weakref.finalize(self, _leave, self._folder, lock)
        info = filesystem.get_file_info(inner)
        content = hashlib.sha256(f"{file} {info.size} {info.mtime_ns}".encode()).hexdigest()
        copy = self._folder / content[:32]
        if not copy.exists():
            with FileLock(f"{copy}.lock"):  # processes of one machine come at once
                if not copy.exists():
                    _download(file, copy)
        return str(copy)


def _download(file: str, copy: Path) -> None:
    filesystem, inner = storage.resolve(file)
    temporary = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}{storage.LEFTOVER}")
    try:
        with filesystem.open_input_stream(inner) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        temporary.replace(copy)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{file}: cannot be copied to {copy.parent} ({error}); free some space there, or set TMPDIR to "
            "a larger folder"
        ) from None


def _entered() -> tuple[Path, int]:
    """The folder of copies, and its lock, which is held in common; what nobody uses is deleted first."""
    folder = Path(tempfile.gettempdir()) / f"tinyqa-copies-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # a link to a folder passes for one in mkdir
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if not private or found.st_uid != os.getuid():
        raise InputError(
            f"{folder}: is not a folder that is yours alone, and what others put there would be read; "
            "delete it, or set TMPDIR to another folder"
        )
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(folder)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return folder, lock


def _leave(folder: Path, lock: int) -> None:
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(folder)
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != _LOCK:  # those who wait for it have it open
            file.unlink(missing_ok=True)
