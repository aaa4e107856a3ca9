"""ONNX Runtime for the web: fetched from npm at a pinned version, checked, and kept in the cache folder."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from filelock import FileLock

from tinyqa_ray.core import bundled
from tinyqa_ray.core.errors import InputError, StoreError

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of the package's archive, in base64, as npm's ``integrity`` has it. It belongs to ``VERSION``."""
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
"""What a page needs of it: the interface, and the engine in WebAssembly."""
_TIMEOUT_S = 300.0


def runtime() -> Path:
    """Folder with ``FILES``, fetched where it is not there yet.

    Raises:
        InputError: npm is not installed, what it fetched is not the archive that is pinned here, or the cache
            folder cannot be written to.
        StoreError: npm could not fetch it.
    """
    folder = bundled.cache() / "browser" / f"{PACKAGE}-{VERSION}"
    if folder.is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(
            f"the page needs {PACKAGE} {VERSION}, which npm fetches, and npm is not installed; "
            "install Node.js, which brings it"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # two builds at once
            if not folder.is_dir():
                # In the same file system, so that the folder appears whole or not at all.
                with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                    made = Path(temporary) / "made"
                    made.mkdir()
                    unpack(_fetched(npm, temporary), made)
                    made.rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder.parent}: {PACKAGE} cannot be kept there ({error.strerror}); set XDG_CACHE_HOME to a "
            "folder that can be written to"
        ) from None
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Check the archive of the package, and write ``FILES`` of it into a folder.

    Raises:
        InputError: it is not the archive that is pinned here.
    """
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != _SHA512:
        raise InputError(
            f"{archive.name}: its sha512 is {found[:16]}…, but {PACKAGE} {VERSION} has {_SHA512[:16]}…; "
            "it is not used"
        )
    with tarfile.open(archive) as packed:
        for name in FILES:
            member = packed.extractfile(f"package/dist/{name}")
            assert member is not None, name
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(member, file)


def _fetched(npm: str, folder: str) -> Path:
    command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--pack-destination", folder]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise StoreError(
            f"npm did not fetch {PACKAGE} {VERSION} within {_TIMEOUT_S:.0f} s; try again"
        ) from None
    found = list(Path(folder).glob("*.tgz"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
        reason = lines[0].removeprefix("npm error ") if lines else f"exit code {done.returncode}"
        raise StoreError(
            f"npm could not fetch {PACKAGE} {VERSION} ({reason}); is its registry reachable? try again"
        )
    return found[0]
