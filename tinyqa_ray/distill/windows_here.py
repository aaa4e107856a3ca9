"""Windows as local files: of a store's, each node makes one copy of the columns that training reads."""

from __future__ import annotations

import errno
import functools
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.node_copies import node_copy
from tinyqa_ray.distill.batches import read_columns
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, window_files

_FILE = "windows.arrow"
_READERS = 16
"""Files that are fetched at the same time; as many wait to be written."""


@contextmanager
def windows_here(folder: str) -> Iterator[list[str]]:
    """Local Arrow files with the windows of a finished teacher-logits stage, in their order.

    A local folder's own files are given. Those of a store are fetched whole, with two requests each, and
    kept in one file without the columns that training does not read (offsets and ids are about half of the
    bytes). All processes of a machine share that file, and a run that goes on finds it again: see
    ``node_copy``.

    Raises:
        InputError: no such stage, a file that is not Arrow, or no room for the copy.
    """
    files = window_files(folder)
    if storage.is_local(folder):
        yield files
        return
    found = storage.listing(storage.join(folder, FOLDER))
    listed = repr([(file.path, file.size, file.modified_s) for file in found])
    key = hashlib.sha256(listed.encode()).hexdigest()[:32]
    with node_copy("windows", key, functools.partial(_copy, folder, files)) as copy:
        yield [str(copy / _FILE)]


def window_table(file: str) -> pa.Table:
    """The columns of a file of windows that training reads; a local file is memory-mapped.

    Raises:
        InputError: the file is not Arrow.
        OSError: a store does not serve it.
    """
    filesystem, inner = storage.resolve(file)
    if storage.is_local(file):
        source = pa.memory_map(inner)
    else:
        with filesystem.open_input_file(inner) as opened:
            source = opened.read_buffer()  # all at once: each read of a part is one more request
    return read_columns(file, source)


def _copy(folder: str, files: Sequence[str], into: Path) -> None:
    tables = _fetched(files)
    first = next(tables)
    try:
        with pa.OSFile(str(into / _FILE), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{folder}: its windows cannot be copied to {into.parent} ({error}); free some space there, or "
            "set TMPDIR to a folder on a larger disk"
        ) from None


def _fetched(files: Sequence[str]) -> Iterator[pa.Table]:
    """The files' tables in order, some fetched ahead of others: memory holds ``2 * _READERS`` of them."""
    with ThreadPoolExecutor(_READERS, "windows") as pool:
        waiting = deque(pool.submit(window_table, file) for file in files[: 2 * _READERS])
        try:
            for file in files[2 * _READERS :]:
                yield waiting.popleft().result()
                waiting.append(pool.submit(window_table, file))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
