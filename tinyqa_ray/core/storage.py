"""One small set of calls for files on a local disk or behind a URL (s3://, gs://, any fsspec scheme)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from tinyqa_ray.core import faults
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.patient_store import patient

LEFTOVER = ".tmp"
"""Ending of a file that is still being written, or whose writer was killed; no reader looks at it."""
_CHECK_STORE = "check the address, the network and the credentials"
_MEMORY = 1 << 24
"""Bytes of an object that are held in memory while it is sent to a store."""


def resolve(path: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of ``path`` and the path within it.

    Calls to a store behind a URL are tried again after passing faults, and raise ``StoreError`` if these
    last (see ``faults``); so does everything in this module.

    Raises:
        InputError: the URL's scheme is unknown, or its store cannot be found.
    """
    if "://" not in path:
        return pafs.LocalFileSystem(), absolute(path)
    try:
        with _reached(path):
            filesystem, inner = faults.patiently(path, lambda: pafs.FileSystem.from_uri(path))
    except pa.ArrowInvalid:  # a scheme that Arrow does not know
        import fsspec

        try:
            handler, inner = fsspec.url_to_fs(path)
        except (ValueError, ImportError) as error:
            raise InputError(f"{path}: {error}; give a local path, s3:// or another fsspec URL") from None
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(handler))
    if isinstance(filesystem, pafs.LocalFileSystem):  # file://
        return filesystem, inner
    return patient(filesystem, path), inner


@contextlib.contextmanager
def _reached(path: str) -> Iterator[None]:
    """Turn the error of a store that does not answer, or denies access, into one line about ``path``."""
    try:
        yield
    except OSError as error:
        mend = _CHECK_STORE if "://" in path else "check the path"
        raise faults.refused(path, error, f"{path}: cannot be reached ({_reason(error)}); {mend}") from None


def _reason(error: OSError) -> str:
    return error.strerror or " ".join(str(error).split())[:300]


def is_local(path: str) -> bool:
    """Whether ``path`` is on a local disk."""
    return isinstance(resolve(path)[0], pafs.LocalFileSystem)


def absolute(path: str) -> str:
    """``path`` as an absolute path; a URL stays as it is."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


def join(path: str, *parts: str) -> str:
    """Append ``parts`` to a path or URL."""
    return "/".join([path.rstrip("/"), *parts])


def kind(path: str) -> str:
    """``"file"``, ``"folder"`` or ``"absent"``."""
    filesystem, inner = resolve(path)
    with _reached(path):
        file_type = filesystem.get_file_info(inner).type
    return {pafs.FileType.File: "file", pafs.FileType.Directory: "folder"}.get(file_type, "absent")


def read_bytes(path: str) -> bytes:
    """The bytes of a file; InputError when there is none."""
    filesystem, inner = resolve(path)
    try:
        with filesystem.open_input_stream(inner) as stream:
            return bytes(stream.read())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:  # a folder, no permission, or a store that does not answer
        mistake = f"{path}: {error.strerror or error}; give a readable file"
        raise faults.refused(path, error, mistake) from None


def read_json(path: str) -> Any:
    """The value of a JSON file; InputError when it is absent or broken."""
    try:
        return json.loads(read_bytes(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8 JSON") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from None


def write_atomic(path: str, data: bytes | Iterable[bytes]) -> None:
    """Write a file that is either whole or absent, even if the process dies in the middle.

    Behind a URL that holds where the store shows an object once it is whole, as S3, Google Cloud Storage and
    Azure do; SFTP or HDFS show the half of a file whose writer was killed.

    Args:
        path: local path or URL.
        data: the bytes of the file, at once or in pieces.

    Raises:
        InputError: the file cannot be written.
    """
    pieces = [data] if isinstance(data, bytes) else data
    filesystem, inner = resolve(path)
    make_folder(path.rsplit("/", 1)[0] if "://" in path else str(Path(inner).parent))
    if not isinstance(filesystem, pafs.LocalFileSystem):
        _upload(path, pieces)
        return
    # Not the process id: two machines that write to a shared folder may use the same one.
    temporary = f"{inner}.{uuid.uuid4().hex}{LEFTOVER}"
    try:
        with Path(temporary).open("wb") as stream:
            for piece in pieces:
                stream.write(piece)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(inner)
    except OSError as error:
        mistake = f"{path}: cannot be written ({error.strerror}); free some space or choose another --output"
        raise faults.refused(path, error, mistake) from None
    finally:
        # After a successful write it no longer exists.
        with contextlib.suppress(OSError):
            Path(temporary).unlink()


def _upload(path: str, pieces: Iterable[bytes]) -> None:
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY) as whole:
        # Collect all pieces first: a store shows the half that an interrupted stream sent as a whole object.
        for piece in pieces:
            whole.write(piece)
        _send(path, whole)


def _send(path: str, whole: Any) -> None:
    """Send an open file to a store, from its beginning each time that the store breaks off."""
    filesystem, inner = resolve(path)

    def send() -> None:
        whole.seek(0)
        with filesystem.open_output_stream(inner) as stream:
            while piece := whole.read(_MEMORY):
                stream.write(piece)

    try:
        faults.patiently(path, send)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({_reason(error)}); {_CHECK_STORE}") from None


def send_folder(folder: Path, path: str) -> None:
    """Copy the files of a local folder into a store; one whose sending breaks off is begun anew.

    Raises:
        InputError: a file cannot be written.
        StoreError: the store did not serve within the patience.
    """
    for file in sorted(each for each in folder.rglob("*") if each.is_file()):
        with file.open("rb") as whole:
            _send(join(path, file.relative_to(folder).as_posix()), whole)


def write_json(path: str, value: Any) -> None:
    """Write ``value`` as readable JSON, atomically."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def make_folder(path: str) -> None:
    """Create a folder and its parents.

    Raises:
        InputError: the folder cannot be created.
    """
    filesystem, inner = resolve(path)
    try:
        filesystem.create_dir(inner, recursive=True)
    except OSError as error:
        mistake = f"{path}: the folder cannot be made ({error}); choose another --output"
        raise faults.refused(path, error, mistake) from None


def list_files(path: str, suffix: str = "", *, recursive: bool = False) -> list[str]:
    """Sorted paths of the files in a folder whose names end in ``suffix``; none if the folder is absent."""
    filesystem, inner = resolve(path)
    selector = pafs.FileSelector(inner, allow_not_found=True, recursive=recursive)
    found = [info for info in filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
    names = sorted(info.path[len(inner) :].lstrip("/") for info in found)
    return [join(path, name) for name in names if name.endswith(suffix)]


@dataclass(frozen=True, slots=True)
class File:
    """A file as its store lists it."""

    path: str
    size: int
    """In bytes."""
    modified_s: float | None
    """Seconds since 1970; None where the store does not say."""


def listing(path: str, *, recursive: bool = False) -> list[File]:
    """The file at ``path``, or the files of the folder at ``path``, sorted; empty if there is neither."""
    filesystem, inner = resolve(path)
    with _reached(path):
        found = filesystem.get_file_info(inner)
        if found.type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(inner, recursive=recursive))
        else:
            infos = [found]
    # Keep the path as it was given; the store may write it another way.
    files = [
        File(
            path + info.path[len(inner) :],
            info.size,
            None if info.mtime_ns is None else info.mtime_ns / 1e9,
        )
        for info in infos
        if info.type == pafs.FileType.File
    ]
    return sorted(files, key=lambda file: file.path)


def fixed_part(pattern: str) -> str:
    """The folder of a pattern of paths: all before the first part with a ``*``, without the last slash."""
    return pattern[: pattern.index("*")].rpartition("/")[0] or ("/" if pattern.startswith("/") else ".")


def matching(pattern: str) -> list[File]:
    """The files whose paths match a pattern, sorted; ``*`` is any part of a name, ``**`` any folders."""
    folder = fixed_part(pattern)
    wanted = re.escape(pattern if pattern.startswith(folder) else join(folder, pattern))
    for given, means in ((r"\*\*/", "(?:.*/)?"), (r"\*\*", ".*"), (r"\*", "[^/]*")):
        wanted = wanted.replace(given, means)
    return [file for file in listing(folder, recursive=True) if re.fullmatch(wanted, file.path, re.DOTALL)]


def chunks(path: str) -> Iterator[bytes]:
    """The bytes of a file, a few megabytes at a time."""
    filesystem, inner = resolve(path)
    with _reached(path), filesystem.open_input_stream(inner) as stream:
        while chunk := stream.read(1 << 22):
            yield chunk


def names_in(path: str) -> list[str]:
    """Names of files and folders in a folder, except leftovers of killed writes; none if it is absent."""
    filesystem, inner = resolve(path)
    found = filesystem.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return [info.base_name for info in found if not info.path.endswith(LEFTOVER)]


def leftovers(path: str) -> list[str]:
    """Files in a local folder that killed writes left behind; a store has none."""
    return list_files(path, LEFTOVER, recursive=True) if is_local(path) else []


def delete_leftovers(path: str) -> None:
    """Delete the leftovers in a folder, which nobody else may be writing to."""
    for file in leftovers(path):
        delete_file(file)


def delete_folder(path: str) -> None:
    """Delete a folder and all in it, if it is there."""
    filesystem, inner = resolve(path)
    if kind(path) == "folder":
        filesystem.delete_dir(inner)


def delete_file(path: str) -> None:
    """Delete a file, if it is there."""
    filesystem, inner = resolve(path)
    if kind(path) == "file":
        filesystem.delete_file(inner)


def size(path: str) -> int:
    """Size of a file, in bytes."""
    filesystem, inner = resolve(path)
    return int(filesystem.get_file_info(inner).size)
