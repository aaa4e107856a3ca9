"""The process that reads files for another, one after the other, and may die of one.

    python -m tinyqa_ray.documents.worker

Its replies are no pickles, which whoever takes over a parser could turn into code for the other process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.machine import resident_bytes
from tinyqa_ray.documents import frames
from tinyqa_ray.documents.document import Document, UnreadableError
from tinyqa_ray.documents.places import PAGES, PIECES, Box
from tinyqa_ray.documents.read import read_document

SCHEMA = pa.schema(
    [pa.field("text", pa.large_string()), pa.field("pages", PAGES), pa.field("pieces", PIECES)]
)
"""A reply: a document in one row."""
READY = b"r"
"""The first byte of the replies, once the process can read."""
_KEPT_BYTES = 1 << 28
"""Most memory that files which were read may leave behind: with more, the process ends and gives it back."""


def main() -> None:
    """Read the files that come on stdin until it ends."""
    # Whatever else a library prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Reply to every request; after one that left much memory behind, end."""
    began = resident_bytes(os.getpid())
    replies.write(READY)
    replies.flush()
    while (frame := frames.receive(requests)) is not None:
        asked, data = frame
        limits = DocumentLimits(**asked["limits"])
        reply: dict[str, Any] = {"unreadable": None, "mistake": None, "ends": False}
        made = b""
        try:
            with _timed(limits):
                made = _made(asked, data, limits)
        except UnreadableError as error:
            reply["unreadable"] = str(error)
        except InputError as error:
            reply["mistake"] = str(error)
        del data, frame
        reply["ends"] = resident_bytes(os.getpid()) > began + _KEPT_BYTES
        frames.send(replies, reply, made)
        if reply["ends"]:
            return


def _made(asked: Mapping[str, Any], data: bytes, limits: DocumentLimits) -> bytes:
    if asked["boxes"] is None:
        return _written(read_document(asked["name"], data, limits))
    from tinyqa_ray.documents.pictures import marked_picture

    return marked_picture(data, [Box(**each) for each in asked["boxes"]]).encode()


def _written(document: Document) -> bytes:
    pages, pieces = document.places.to_arrow()
    ends = pa.array([0, len(pieces)], pa.int32())
    columns = [
        pa.array([document.text], pa.large_string()),
        pa.array([pages], PAGES),
        pa.ListArray.from_arrays(ends, pieces, PIECES),
    ]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
    made: bytes = sink.getvalue().to_pybytes()
    return made


@contextlib.contextmanager
def _timed(limits: DocumentLimits) -> Iterator[None]:
    """Have the system end this process by a signal when a file takes too long, even within a library.

    The process that asked looks at the clock, too; but it may be gone.
    """
    signal.setitimer(signal.ITIMER_REAL, limits.max_file_s)
    signal.setitimer(signal.ITIMER_PROF, limits.max_file_core_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main()
