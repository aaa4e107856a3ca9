"""What the process that reads files and the one that asks it send each other: a JSON head, and bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

_SIZES = struct.Struct("<QQ")
"""Bytes of the head, and of what follows it."""

Frame = tuple[dict[str, Any], bytes]


def send(sink: IO[bytes], head: Mapping[str, Any], data: bytes = b"") -> None:
    """Write a frame."""
    words = json.dumps(head).encode()
    sink.write(_SIZES.pack(len(words), len(data)) + words)
    sink.write(data)
    sink.flush()


def receive(source: IO[bytes]) -> Frame | None:
    """Read a frame; None if the other side has ended."""
    sizes = source.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    words, count = _SIZES.unpack(sizes)
    head, data = source.read(words), source.read(count)
    if len(head) < words or len(data) < count:
        return None
    found: dict[str, Any] = json.loads(head)
    return found, data
