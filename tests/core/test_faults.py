from __future__ import annotations

import errno
import io
import pickle
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.cli.arguments import mistakes_in_one_line
from tinyqa_ray.core import faults, shards, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.patient_store import patient


class Answer:
    status_code = 503


class AnsweredError(Exception):
    response = Answer()


class ReadTimeout(Exception):  # noqa: N818
    """Of the name that several HTTP clients give it."""


SLOW_DOWN = "When initiating multiple part upload: AWS Error SLOW_DOWN during CreateMultipartUpload operation"
HEAD = "When getting information for key 'a': AWS Error UNKNOWN (HTTP status {}) during HeadObject operation"
NO_HOST = "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname"
TOO_SLOW = "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached"


@pytest.mark.parametrize(
    "error",
    [
        OSError(SLOW_DOWN),
        OSError(HEAD.format(503)),
        OSError(HEAD.format(429)),
        OSError(TOO_SLOW),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError(104, "Connection reset by peer"),
        TimeoutError(),
        AnsweredError(),
        ReadTimeout(),
        StoreError("s3://b: the store did not serve"),
    ],
    ids=repr,
)
def test_busy_slow_or_broken_connection_is_a_passing_fault(error: Exception) -> None:
    assert faults.passing(error)
    outer = RuntimeError("the model could not be loaded")
    outer.__cause__ = error
    assert faults.passing(outer)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        PermissionError(13, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(HEAD.format(404)),
        OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
        OSError(NO_HOST),
        ConnectionRefusedError(111, "Connection refused"),
        pa.ArrowInvalid("Parquet magic bytes not found in footer"),
        OSError("zlib inflate failed: incorrect header check"),
        ValueError("the model's timeout is -1"),
    ],
    ids=repr,
)
def test_absent_closed_or_broken_file_is_none(error: Exception) -> None:
    assert not faults.passing(error)


def test_waits_grow_up_to_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waits.append)
    monkeypatch.setenv(faults.PATIENCE, "30")

    def busy() -> None:
        raise OSError(SLOW_DOWN)

    with pytest.raises(StoreError, match=r"^s3://b/a: the store did not serve .*SLOW_DOWN.*run the same"):
        faults.patiently("s3://b/a", busy)
    assert 10 < sum(waits) <= 30
    assert waits[-1] > 4 * waits[0]


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def absent() -> None:
        calls.append(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        faults.patiently("s3://b/a", absent)
    assert len(calls) == 1


def test_patience_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.PATIENCE, "long")
    with pytest.raises(InputError, match=r"TINYQA_STORE_PATIENCE_S is 'long'; it must be a number"):
        faults.patiently("a", lambda: (_ for _ in ()).throw(TimeoutError()))


class Flaky(pafs.FileSystemHandler):  # type: ignore[misc]
    """A store in memory; each call, and each read, first fails as often as told."""

    left = 0
    """How many of the next calls fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def fail(self) -> None:
        if Flaky.left:
            Flaky.left -= 1
            raise OSError(HEAD.format(503))

    def get_type_name(self) -> str:
        return "flaky"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        self.fail()
        return [
            pafs.FileInfo(path, pafs.FileType.File, size=len(self.files[path]))
            if path in self.files
            else pafs.FileInfo(path, pafs.FileType.NotFound)
            for path in paths
        ]

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self.fail()
        return self.get_file_info(sorted(self.files))

    def create_dir(self, path: str, recursive: bool) -> None:
        self.fail()

    def delete_dir(self, path: str) -> None:
        self.fail()

    delete_dir_contents = delete_root_dir_contents = move = copy_file = open_append_stream = delete_dir

    def delete_file(self, path: str) -> None:
        if path not in self.files:
            raise FileNotFoundError(path)
        del self.files[path]
        self.fail()  # the answer is lost

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.fail()
        store = self

        class Read(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                store.fail()
                return super().read(size)

        return pa.PythonFile(Read(self.files[path]), "r")

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        store = self

        class Write(io.BytesIO):
            def write(self, data: Any) -> int:
                store.fail()
                return super().write(data)

            def close(self) -> None:
                if not self.closed:
                    store.files[path] = self.getvalue()
                super().close()

        return pa.PythonFile(Write(), "w")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Flaky]:
    made = Flaky()
    monkeypatch.setattr(storage, "resolve", lambda url: (patient(pafs.PyFileSystem(made), url), url[8:]))
    monkeypatch.setattr(storage, "is_local", lambda path: False)
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    yield made
    Flaky.left = 0


def test_every_call_survives_faults_of_the_store(store: Flaky) -> None:
    path = "flaky://a.txt"
    steps: list[tuple[Any, Any]] = [
        (lambda: storage.write_atomic(path, b"x" * 100), None),
        (lambda: storage.read_bytes(path), b"x" * 100),
        (lambda: b"".join(storage.chunks(path)), b"x" * 100),
        (lambda: storage.kind(path), "file"),
        (lambda: storage.size(path), 100),
        (lambda: len(storage.listing(path)), 1),
        (lambda: storage.delete_file(path), None),
        (lambda: storage.kind(path), "absent"),
    ]
    for call, expected in steps:
        Flaky.left = 3
        assert call() == expected
        assert not Flaky.left


def test_folder_is_sent_through_faults(store: Flaky, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "large.pt").write_bytes(b"weights" * 5_000_000)
    (tmp_path / "small.json").write_text("{}")
    Flaky.left = 7
    storage.send_folder(tmp_path, "flaky://run")
    assert not Flaky.left
    assert {name: len(content) for name, content in store.files.items()} == {
        "run/inner/large.pt": 35_000_000,
        "run/small.json": 2,
    }


def test_parquet_is_read_through_faults(store: Flaky) -> None:
    table = pa.table({"a": list(range(1000))})
    shards.write_input("flaky://a.parquet", table)
    Flaky.left = 5
    shard = shards.Shard(0, "flaky://a.parquet", 100, 300, "flaky://b.parquet")
    assert shards._rows_of(shard)["a"].to_pylist() == list(range(100, 400))
    assert not Flaky.left


def test_store_that_stays_down_is_a_fault_and_not_a_mistake(
    store: Flaky, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    storage.write_atomic("flaky://a.json", b"{}")
    monkeypatch.setenv(faults.PATIENCE, "0")
    calls: list[Any] = [
        lambda: storage.kind("flaky://a.json"),
        lambda: storage.read_json("flaky://a.json"),
        lambda: storage.write_json("flaky://b.json", {}),
        lambda: list(storage.chunks("flaky://a.json")),
        lambda: storage.list_files("flaky://"),
    ]
    for call in calls:
        Flaky.left = 1000
        with pytest.raises(StoreError, match="the store did not serve"):
            call()
    with pytest.raises(SystemExit) as stop, mistakes_in_one_line():
        storage.read_json("flaky://a.json")
    assert stop.value.code == 75
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.fixture
def busy_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """An S3 server of one object, ``one``; the list holds the status codes of its next answers."""
    failing: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.send_response(failing.pop(0) if failing else 206 if self.command == "GET" else 200)
            self.send_header("Content-Length", "3")
            self.send_header("Content-Range", "bytes 0-2/3")
            self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"one")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "x-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(name, value)
    yield failing
    server.shutdown()
    server.server_close()
    thread.join()


def test_s3_that_answers_503_for_longer_than_arrow_tries_is_waited_for(busy_s3: list[int]) -> None:
    # Arrow gives up after 31 requests, in six seconds.
    busy_s3[:] = [503] * 35
    assert storage.read_bytes("s3://busy/a") == b"one"
    assert not busy_s3


def test_patient_file_system_can_be_sent_to_a_worker(bucket: str) -> None:
    filesystem, inner = storage.resolve(f"{bucket}/{uuid.uuid4().hex}")
    sent = pickle.loads(pickle.dumps(filesystem))
    assert sent == filesystem
    assert sent.get_file_info(inner).type == pafs.FileType.NotFound


def test_local_file_system_is_left_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    assert isinstance(storage.resolve(str(tmp_path))[0], pafs.LocalFileSystem)
