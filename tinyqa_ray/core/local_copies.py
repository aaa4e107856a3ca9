"""Local copies of files behind a URL: made once a machine, shared by its processes, deleted at the end."""

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

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError

_CHUNK = 1 << 22
_LOCK = "lock"
"""File on which every process that uses the folder holds a shared lock."""


class LocalCopies:
    """Local paths of files; a file behind a URL is copied when it is first asked for.

    All processes of a user on a machine share one private folder for copies, in the folder of temporary
    files (``TMPDIR``). The last of these objects to go deletes the copies. If a killed process left some
    behind, the next process that finds the folder unused deletes them. A copy is whole or absent, and is
    found again by the URL, size and time of its file.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def path(self, file: str) -> str:
        """The path of a file, or of its copy, which stays as long as this object lives.

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
            with FileLock(f"{copy}.lock"):  # several processes of one machine may get here at once
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
        mistake = (
            f"{file}: cannot be copied to {copy.parent} ({error}); free some space there, or set TMPDIR to a "
            "larger folder"
        )
        raise faults.refused(file, error, mistake) from None


def _entered() -> tuple[Path, int]:
    """The folder of copies and its shared lock, now held; copies that nobody uses are deleted first."""
    folder = private_folder("copies")
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _clear(folder)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return folder, lock


def private_folder(name: str) -> Path:
    """The user's own folder for ``name`` among the files of ``TMPDIR``.

    Raises:
        InputError: somebody else can write to it.
    """
    folder = Path(tempfile.gettempdir()) / f"tinyqa-{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()  # not stat: mkdir accepts a link to a folder as well
    private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    if not private or found.st_uid != os.getuid():
        raise InputError(
            f"{folder}: is not a folder that is yours alone, so others could put files there; "
            "delete it, or set TMPDIR to another folder"
        )
    return folder


def _leave(folder: Path, lock: int) -> None:
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clear(folder)
    finally:
        os.close(lock)


def _clear(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name != _LOCK:  # other processes may have it open, to wait for it
            file.unlink(missing_ok=True)
