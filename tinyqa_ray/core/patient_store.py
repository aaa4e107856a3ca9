"""A file system behind a URL whose calls are tried again after passing faults (see ``faults``)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from tinyqa_ray.core import faults


def patient(filesystem: pafs.FileSystem, url: str) -> pafs.PyFileSystem:
    """``filesystem`` with patience; ``url`` names the store in messages."""
    return pafs.PyFileSystem(_Patient(filesystem, url.partition("://")[0] + "://"))


class _Patient(pafs.FileSystemHandler):  # type: ignore[misc]
    """Every call of a file system, and every read of its files, with patience.

    A stream to write is only opened so: what was sent is lost with the stream, so ``storage.write_atomic``
    begins the whole file again.
    """

    def __init__(self, filesystem: pafs.FileSystem, scheme: str) -> None:
        self.inner = filesystem
        self.scheme = scheme

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Patient) and self.inner == other.inner

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def _try(self, path: str, call: Callable[[], Any]) -> Any:
        return faults.patiently(self.scheme + path, call)

    def get_type_name(self) -> str:
        return str(self.inner.type_name)

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self._try(paths[0] if paths else "", lambda: self.inner.get_file_info(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return self._try(selector.base_dir, lambda: self.inner.get_file_info(selector))

    def create_dir(self, path: str, recursive: bool) -> None:
        self._try(path, lambda: self.inner.create_dir(path, recursive=recursive))

    def delete_dir(self, path: str) -> None:
        self._again(path, lambda: self.inner.delete_dir(path))

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self._again(path, lambda: self.inner.delete_dir_contents(path, missing_dir_ok=missing_dir_ok))

    def delete_root_dir_contents(self) -> None:
        self._try("/", lambda: self.inner.delete_dir_contents("/", accept_root_dir=True))

    def delete_file(self, path: str) -> None:
        self._again(path, lambda: self.inner.delete_file(path))

    def _again(self, path: str, delete: Callable[[], Any]) -> None:
        """Delete; a try whose answer was lost may have deleted it already."""
        tries = 0

        def call() -> None:
            nonlocal tries
            tries += 1
            with contextlib.suppress(*((FileNotFoundError,) if tries > 1 else ())):
                delete()

        self._try(path, call)

    def move(self, src: str, dest: str) -> None:
        self._try(src, lambda: self.inner.move(src, dest))

    def copy_file(self, src: str, dest: str) -> None:
        self._try(src, lambda: self.inner.copy_file(src, dest))

    def open_input_stream(self, path: str) -> pa.NativeFile:
        # As a file: it can be read again where a read broke off.
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        name = self.scheme + path
        return pa.PythonFile(
            _PatientFile(name, self._try(path, lambda: self.inner.open_input_file(path))), "r"
        )

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        # The caller's own call packs what is named ".gz"; packed here too, it would be packed twice.
        return self._try(
            path, lambda: self.inner.open_output_stream(path, compression=None, metadata=metadata)
        )

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return self._try(
            path, lambda: self.inner.open_append_stream(path, compression=None, metadata=metadata)
        )


class _PatientFile(io.RawIOBase):
    """A file to read, each read tried again after a passing fault."""

    def __init__(self, name: str, file: pa.NativeFile) -> None:
        self._name, self._file = name, file
        self._at = 0

    def read(self, size: int | None = -1) -> bytes:
        def call() -> bytes:
            self._file.seek(self._at)
            return bytes(self._file.read(None if size is None or size < 0 else size))

        found = faults.patiently(self._name, call)
        self._at += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._at, self.size() if whence == 2 else 0)[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return int(faults.patiently(self._name, self._file.size))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
