"""A Hugging Face hub on the loopback, with as much of its interface as loading and uploading models need."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_tester"
_LARGE = (".safetensors", ".bin")


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    messages: list[str] = field(default_factory=list)
    """Of its commits."""
    earlier: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of earlier commits."""

    def keep(self) -> str:
        """Keep the files of the present commit, which can then be asked for; returns it."""
        self.earlier[self.commit] = dict(self.files)
        return self.commit

    def at(self, revision: str) -> dict[str, bytes]:
        return self.earlier.get(revision, self.files)

    def named(self, revision: str) -> str:
        return revision if revision in self.earlier else self.commit

    @property
    def commit(self) -> str:
        names = json.dumps(sorted((name, _sha256(data)) for name, data in self.files.items()))
        return hashlib.sha1(names.encode()).hexdigest()


class Hub:
    """Repositories by id; ``requests`` lists what was asked for, as ``GET /path``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[int] = []
        """Status codes with which the next requests for files are answered."""

    def add(self, name: str, folder: str | Path, **options: Any) -> Repository:
        """A repository with the files of a folder."""
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        self.repositories[name] = Repository(files, **options)
        return self.repositories[name]

    def add_dataset(self, name: str, files: dict[str, bytes], revision: str = "main") -> None:
        """A data set's files on a branch; each folder of the main branch is a configuration."""
        folders = sorted({file.split("/")[0] for file in files if "/" in file})
        card = ["---", "configs:"]
        for folder in folders:
            splits = sorted(
                {Path(file).name.split("-")[0] for file in files if file.startswith(f"{folder}/")}
            )
            card += [f"- config_name: {folder}", "  data_files:"]
            for split in splits:
                card += [f"  - split: {split}", f"    path: {folder}/{split}-*"]
        if folders and revision == "main":
            files = {**files, "README.md": "\n".join([*card, "---", ""]).encode()}
        key = f"datasets/{name}" + ("" if revision == "main" else f"@{revision}")
        self.repositories[key] = Repository(files)

    def dataset(self, name: str, revision: str) -> Repository | None:
        """The branch or commit ``revision`` of a data set."""
        for key, repository in self.repositories.items():
            known, _, branch = key.partition("@")
            if known == f"datasets/{name}" and unquote(revision) in (branch or "main", repository.commit):
                return repository
        return None

    def run(self, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python, with ``home`` as cache, in a process that may ask this hub and waits for no retry."""
        home.mkdir(parents=True, exist_ok=True)
        (home / "sitecustomize.py").write_text("import time\ntime.sleep = lambda seconds: None\n")
        online = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
        path = os.pathsep.join([str(home), str(Path(__file__).parents[1])])
        set_here = {"HF_HOME": str(home), "HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            env={**online, **set_here, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """A hub that answers as long as the context lasts."""

    class Handler(_Handler):
        pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Handler.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _entries(repository: Repository, folder: str) -> list[dict[str, Any]]:
    """The files and folders right under a folder, and those in them, as the hub lists a tree."""
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    inside = [name for name in repository.files if name.startswith(prefix)]
    folders = {
        name[:at] for name in inside for at, each in enumerate(name) if each == "/" and at > len(prefix)
    }
    files = [
        {"type": "file", "oid": "0" * 40, "path": name, "size": len(repository.files[name])}
        for name in inside
    ]
    return [
        *({"type": "directory", "oid": "0" * 40, "path": name, "size": 0} for name in sorted(folders)),
        *files,
    ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = self._path()
        if self.hub.faults and "/resolve/" in path:
            self._send(self.hub.faults.pop(0), {"error": "busy"})
        elif match := re.fullmatch(r"/datasets/(.+)/resolve/([^/]+)/(.+)", path):
            if (repository := self._dataset(match[1], match[2])) is not None:
                self._file(repository, match[2], match[3])
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            if (repository := self._dataset(match[1], match[2] or "main")) is not None:
                known = {"id": match[1], "private": False, "sha": repository.commit}
                self._send(200, {**known, "siblings": [{"rfilename": name} for name in repository.files]})
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            if (repository := self._dataset(match[1], match[2])) is not None:
                entries = _entries(repository, unquote(match[3] or ""))
                if entries:
                    self._send(200, entries)
                else:
                    self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        elif match := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", path):
            if (repository := self._opened(match[1])) is not None:
                self._file(repository, match[2], match[3])
        elif match := re.fullmatch(r"/api/models/(.+)/tree/([^/]+)", path):
            if (repository := self._opened(match[1])) is not None:
                kinds = {"type": "file", "oid": "0" * 40}
                files = repository.at(match[2]).items()
                self._send(200, [{"path": name, "size": len(data), **kinds} for name, data in files])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            if (repository := self._opened(match[1], page=True)) is not None:
                commit = repository.named(match[2] or "main")
                known = {"id": match[1], "private": repository.private, "sha": commit}
                self._send(
                    200, {**known, "siblings": [{"rfilename": name} for name in repository.at(commit)]}
                )
        else:
            self._send(404, {"error": f"nothing at {path}"})

    def do_POST(self) -> None:
        path, body = self._path(), self._body()
        if path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            if (repository := self._dataset(match[1], match[2])) is not None:
                wanted = parse_qs(body.decode())["paths"] if body[:1] != b"{" else json.loads(body)["paths"]
                parents = {each.rpartition("/")[0] for each in wanted}
                found = [entry for parent in parents for entry in _entries(repository, parent)]
                self._send(200, [entry for entry in found if entry["path"] in wanted])
        elif not self._knows_who_asks():
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._send(200, {"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.url}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._send(200, {"objects": objects, "transfer": "basic"})
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._send(404, {"error": f"nothing at {path}"})

    def do_PUT(self) -> None:
        oid, data = self._path().rsplit("/", 1)[-1], self._body()
        assert _sha256(data) == oid
        self.hub.large[oid] = data
        self._send(200, {})

    def _path(self) -> str:
        url = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {url.path}")
        return url.path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _knows_who_asks(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _opened(self, name: str, *, page: bool = False) -> Repository | None:
        """The repository, if it may be read; its ``page`` also where its files may not."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._knows_who_asks()):
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        if repository.gated and not page:
            status = 403 if self._knows_who_asks() else 401
            self._send(status, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
            return None
        return repository

    def _dataset(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.dataset(name, revision)
        if repository is None:
            there = self.hub.dataset(name, "main") is not None
            code = "RevisionNotFound" if there else "RepoNotFound"
            self._send(404 if there else 401, {"error": code}, {"X-Error-Code": code})
        return repository

    def _file(self, repository: Repository, revision: str, name: str) -> None:
        commit = {"X-Repo-Commit": repository.named(revision)}
        data = repository.at(revision).get(name)
        if data is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **commit})
        else:
            self._send(200, data, {"ETag": f'"{_sha256(data)}"', **commit})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization'] or 'tester'}/{wanted['name']}"
        known = {"url": f"{self.hub.url}/{name}", "name": name, "id": "0" * 24}
        if wanted["organization"] not in (None, "tester"):
            self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
        elif name in self.hub.repositories:
            self._send(409, {"error": "You already created this model repo", **known})
        else:
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repositories[name] = Repository(private=private)
            self._send(200, known)

    def _commit(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    repository.messages.append(value["summary"])
                case "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository.files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    del repository.files[value["path"]]
        oid = repository.commit
        self._send(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
