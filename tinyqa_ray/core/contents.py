"""Hashes of what inputs hold. An input is hashed again only if names, sizes or times of its files changed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tinyqa_ray.core import storage

SETTLED_S = 2.0
"""The hash of a file that was written more recently than this is not kept: the clock of a file system may
tick only every two seconds, so the file could change once more without another time or size."""

_SUCCESS = "_SUCCESS.json"
_NOT_COMPUTED_WITH = (".md", "tinyqa.json")
"""Endings of files that do not change what a model computes; what reads ``tinyqa.json`` counts it apart."""


@dataclass(frozen=True, slots=True)
class _Known:
    """The state of an input when it was hashed."""

    files: int
    bytes: int
    listing: str
    """Hash of the names, sizes and times of its files."""
    content: str
    """Hash of what they hold."""


_known: dict[str, _Known] = {}
"""Inputs that this process has hashed, by absolute path: a later stage need not hash them again."""


class Contents:
    """Hashes of a run's inputs, kept in a file beside the run."""

    def __init__(self, manifest: str | None = None) -> None:
        """Take over the hashes of earlier inputs from ``manifest``, a JSON file that may be absent."""
        self._manifest = manifest
        self._kept: dict[str, _Known] = {}
        if manifest is not None and storage.kind(manifest) == "file":
            earlier = storage.read_json(manifest)["inputs"]
            self._kept = {path: _Known(**known) for path, known in earlier.items()}
        self._used: dict[str, _Known] = {}

    def identity(self, path: str, *, whole: bool = False) -> str:
        """A string that identifies the content of an input: the same bytes give the same string.

        A finished stage is identified by its ``_SUCCESS.json``, any other file or folder by the SHA-256 of
        its content, and anything else (a hub id) by its name. Files are read only if their names, sizes or
        times differ from the manifest and from what this process has seen. A pattern with ``*`` stands for
        the files that match it.

        Args:
            path: file, folder, pattern, or hub id.
            whole: whether ``.md`` files in a folder count: they do among documents, not beside a model.
        """
        base = path
        match storage.kind(path):
            case "absent" if "*" in path:
                files, base = storage.matching(path), storage.fixed_part(path)
            case "absent":
                return path
            case "file":
                files = storage.listing(path)
            case _:
                success = storage.join(path, _SUCCESS)
                if storage.kind(success) == "file":
                    return _stage_identity(success)
                listed = storage.listing(path, recursive=True)
                files = [file for file in listed if whole or not file.path.endswith(_NOT_COMPUTED_WITH)]
        key, listing = storage.absolute(path), _listed(base, files)
        for known in (self._kept.get(key), _known.get(key)):
            if known is not None and known.listing == listing:
                self._used[key] = _known[key] = known
                return known.content
        began_s = time.time()
        found = _Known(len(files), sum(file.size for file in files), listing, _hashed(files))
        if all(file.modified_s is not None and file.modified_s < began_s - SETTLED_S for file in files):
            self._used[key] = _known[key] = found
        return found.content

    @property
    def outdated(self) -> bool:
        """Whether the manifest differs from what is known about the inputs that were asked for."""
        return self._used != self._kept

    def save(self) -> None:
        """Write the manifest if it is outdated."""
        assert self._manifest is not None, "nothing was kept, so there is nowhere to write it"
        if self.outdated:
            document = {"inputs": {path: asdict(known) for path, known in self._used.items()}}
            storage.write_json(self._manifest, document)
            self._kept = dict(self._used)


def identity(path: str) -> str:
    """``Contents.identity`` without a manifest."""
    return Contents().identity(path)


def _stage_identity(success: str) -> str:
    document = storage.read_json(success)
    made = {part: document[part] for part in ("config", "inputs", "report")}
    made |= {"commits": document["commits"]} if "commits" in document else {}
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return f"stage {document['stage']} {digest[:16]}"


def _listed(path: str, files: Sequence[storage.File]) -> str:
    """Hash of the files' names within the input, their sizes and their times."""
    names = [(file.path[len(path) :], file.size, file.modified_s) for file in files]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]


def _hashed(files: Sequence[storage.File]) -> str:
    """Hash of the bytes of the files and, where there are several, of their names."""
    total = hashlib.sha256()
    for file in files:
        for chunk in storage.chunks(file.path):
            total.update(chunk)
        total.update(f"|{file.path.rsplit('/', 1)[-1]}|".encode() if len(files) > 1 else b"")
    return f"sha256 {total.hexdigest()[:16]}"
