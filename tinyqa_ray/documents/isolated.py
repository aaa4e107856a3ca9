"""Files read in processes of their own, which a file may hang, fill or kill without harm to anything else."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.machine import resident_bytes
from tinyqa_ray.documents import frames
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.places import Box, Places
from tinyqa_ray.documents.read import known_format

COMMAND: tuple[str, ...] = (sys.executable, "-m", "tinyqa_ray.documents.worker")
"""What starts a process that reads."""
_GRACE_S = 10.0
"""Seconds beyond its limit after which a process that did not end by itself is killed."""
_START_S = 300.0
_LOOK_S = 0.05
"""Seconds between two looks at the memory of a process."""
Reason = Literal["clock", "core", "memory"]
_FOR: dict[int, Reason] = {signal.SIGALRM: "clock", signal.SIGPROF: "core"}
"""Why a process ended itself by a signal."""

_idle: list[_Process] = []


def read_isolated(name: str, data: bytes, limits: DocumentLimits | None = None) -> Document:
    """Read a file in another process, which is kept for the next one; as ``read_document``.

    May be called in several threads: each then has a process of its own.

    Raises:
        InputError: as ``read_document``.
        UnreadableError: as ``read_document``; or it took too much time or memory, or the process died.
        ChildProcessError: no process can be started.
    """
    limits = limits or DocumentLimits()
    known_format(name)
    if len(data) > limits.max_file_bytes:
        raise UnreadableError(f"has {len(data)} bytes, over the limit of {limits.max_file_bytes}")
    made = _asked({"name": name, "boxes": None}, data, limits)
    try:
        batch = pa.ipc.open_stream(made).read_next_batch()
        batch.validate(full=True)
        text, pages, pieces = (batch.column(at)[0] for at in range(3))
        return Document(text.as_py(), Places.from_arrow(pages, pieces))
    except (pa.ArrowException, StopIteration, TypeError) as error:
        raise UnreadableError(f"cannot be read ({type(error).__name__})") from None


def marked_picture(data: bytes, boxes: Sequence[Box], limits: DocumentLimits | None = None) -> str:
    """``pictures.marked_picture``, in another process.

    Raises:
        UnreadableError: as there; or it took too much time or memory, or the process died.
        ChildProcessError: no process can be started.
    """
    asked = {"name": "", "boxes": [asdict(box) for box in boxes]}
    return _asked(asked, data, limits or DocumentLimits()).decode()


def _asked(asked: dict[str, Any], data: bytes, limits: DocumentLimits) -> bytes:
    head = {**asked, "limits": asdict(limits)}
    try:
        process = _idle.pop() if _idle else _Process()
    except IndexError:  # another thread was faster
        process = _Process()
    try:
        try:
            reply, made = process.ask(head, data, limits)
        except _DiedError as died:
            if died.at_first_file or died.reason:
                raise
            # An earlier file may have done the damage of which it died.
            process = _Process()
            reply, made = process.ask(head, data, limits)
    except _DiedError as died:
        raise UnreadableError(_words(died, limits)) from None
    if reply["ends"]:
        process.end()
    else:
        _idle.append(process)
    if reply["mistake"] is not None:
        raise InputError(reply["mistake"])
    if reply["unreadable"] is not None:
        raise UnreadableError(reply["unreadable"])
    return made


class _DiedError(Exception):
    """A process ended before it replied: for a limit, or, without a reason, because the file broke it."""

    def __init__(self, reason: Reason | None, *, at_first_file: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.at_first_file = at_first_file


def _words(died: _DiedError, limits: DocumentLimits) -> str:
    match died.reason:
        case "clock":
            return f"takes longer than {limits.max_file_s:g} seconds"
        case "core":
            return f"takes longer than {limits.max_file_core_s:g} seconds of a core"
        case "memory":
            return f"takes more than {limits.max_file_memory_bytes >> 20} MiB of memory"
    return "broke the process that read it"


class _Watch(threading.Thread):
    """Kills a process over its limits.

    With the system's own limit of memory, a library goes on without what it asked for, and libxml2 then takes
    half of a page for the whole.
    """

    def __init__(self, popen: subprocess.Popen[bytes], seconds: float, memory_bytes: int | None) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.killed_for: Reason | None = None
        self._popen = popen
        self._end = time.monotonic() + seconds
        self._most = math.inf if memory_bytes is None else resident_bytes(popen.pid) + memory_bytes

    def run(self) -> None:
        """Look until the block is done."""
        while not self.done.wait(_LOOK_S):
            if time.monotonic() > self._end:
                self.killed_for = "clock"
            elif resident_bytes(self._popen.pid) > self._most:
                self.killed_for = "memory"
            if self.killed_for:
                self._popen.kill()
                return


class _Process:
    """A process that reads, and the pipes to it."""

    def __init__(self) -> None:
        # As multiprocessing does: what this process can import, that one can, too.
        paths = os.pathsep.join(path for path in sys.path if path)
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._popen = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **one, "PYTHONPATH": paths, "ARROW_DEFAULT_MEMORY_POOL": "system"},
            start_new_session=True,  # an interrupt from the terminal is for this process alone
        )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self._requests, self._replies = self._popen.stdin, self._popen.stdout
        self._files = 0
        with self._watched(_START_S):
            ready = self._replies.read(1)
        if not ready:
            self.end()
            raise ChildProcessError("the process that reads documents did not start; stderr says why")

    def ask(self, head: dict[str, Any], data: bytes, limits: DocumentLimits) -> frames.Frame:
        """Send a request, and wait for its reply, within limits of time and memory.

        Raises:
            _DiedError: it ended in place of a reply; it is then gone.
        """
        self._files += 1
        reply = None
        with (
            self._watched(limits.max_file_s + _GRACE_S, limits.max_file_memory_bytes) as watch,
            contextlib.suppress(OSError, ValueError, OverflowError, MemoryError),  # closed, or no reply
        ):
            frames.send(self._requests, head, data)
            reply = frames.receive(self._replies)
        if reply is None:
            code = self.end()
            raise _DiedError(watch.killed_for or _FOR.get(-code), at_first_file=self._files == 1)
        return reply

    @contextlib.contextmanager
    def _watched(self, seconds: float, memory_bytes: int | None = None) -> Iterator[_Watch]:
        """Kill the process if the block takes longer, or it takes more memory beyond what it has."""
        watch = _Watch(self._popen, seconds, memory_bytes)
        watch.start()
        try:
            yield watch
        finally:
            watch.done.set()

    def end(self) -> int:
        """Have it end, if it has not; return its exit code."""
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            return self._popen.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    # The processes are the parent's; two that write to one pipe would mix their files.
    os.register_at_fork(after_in_child=_idle.clear)
