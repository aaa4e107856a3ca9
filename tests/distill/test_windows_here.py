from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from werkzeug.serving import WSGIRequestHandler

from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.distill.checks import check
from tinyqa_ray.distill.loop import train
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.window_facts import window_facts
from tinyqa_ray.distill.windows_here import windows_here
from tinyqa_ray.teacher_logits import teacher_logits
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, window_files


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files of these tests."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def upload(folder: str, url: str) -> str:
    for file in storage.list_files(folder, recursive=True):
        storage.write_atomic(url + file[len(folder) :], storage.read_bytes(file))
    return url


@pytest.fixture(scope="module")
def remote(tiny_windows: str, bucket: str) -> str:
    """The tiny windows on an S3 server."""
    return upload(tiny_windows, f"{bucket}/windows-here")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Requests to the S3 server by the path of their object."""
    counted: Counter[str] = Counter()

    def log(handler: WSGIRequestHandler, *given: object) -> None:
        counted[handler.path.partition("?")[0]] += 1

    monkeypatch.setattr(WSGIRequestHandler, "log_request", log)
    return counted


def of_windows(requests: Counter[str]) -> dict[str, int]:
    return {path: count for path, count in requests.items() if path.endswith(".arrow")}


def copies(temporary: Path) -> list[Path]:
    return list(temporary.rglob("*.arrow"))


def test_local_folder_is_read_where_it_is(tiny_windows: str, temporary: Path) -> None:
    with windows_here(tiny_windows) as files:
        assert files == window_files(tiny_windows)
    assert list(temporary.iterdir()) == []


def test_files_of_a_store_are_fetched_once_for_all_processes_with_two_requests_each(
    tiny_windows: str, remote: str, temporary: Path, requests: Counter[str]
) -> None:
    with windows_here(remote) as files, windows_here(remote) as others:
        assert files == others
        assert copies(temporary) == [Path(files[0])]
    found = of_windows(requests)
    assert len(found) == len(window_files(tiny_windows)) > 1
    assert max(found.values()) <= 2
    assert copies(temporary) == []


def test_copy_holds_the_same_windows_in_the_columns_that_training_reads(
    tiny_windows: str, remote: str
) -> None:
    here = WindowData(window_files(tiny_windows), 0)
    rows = np.random.default_rng(0).permutation(len(here))
    with windows_here(remote) as files:
        there = WindowData(files, 0)
        names = pa.ipc.open_stream(pa.memory_map(files[0])).schema.names
        assert "offsets" not in names
        assert "question_id" not in names
        assert there.window_ids(rows) == here.window_ids(rows)
        assert (there.lengths == here.lengths).all()
        one, other = here.batch(rows, rows), there.batch(rows, rows)
    assert (there.logits, there.has_labels) == (here.logits, here.has_labels)
    assert one.start_logits is not None
    assert other.start_logits is not None
    for name in ("input_ids", "token_type_ids", "start_positions", "end_positions", "start_logits"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_windows_that_changed_are_fetched_anew(tiny_windows: str, bucket: str) -> None:
    url = upload(tiny_windows, f"{bucket}/changing")
    with windows_here(url) as files:
        first = window_files(url)[0]
        storage.write_atomic(f"{url}/{FOLDER}/part-999999.arrow", storage.read_bytes(first))
        with windows_here(url) as others:
            assert files != others
            assert len(WindowData(others, 0)) > len(WindowData(files, 0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_explained(remote: str, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = pa.OSFile
    monkeypatch.setattr(pa, "OSFile", lambda path, mode: disk("/dev/full", mode))
    with pytest.raises(InputError) as refused, windows_here(remote):
        pytest.fail("there was no room")
    message = str(refused.value)
    assert message.startswith(f"{remote}: its windows cannot be copied to {temporary}")
    assert message.endswith("free some space there, or set TMPDIR to a folder on a larger disk")


def test_file_of_a_store_that_is_not_arrow_is_refused_by_name(tiny_windows: str, bucket: str) -> None:
    url = upload(tiny_windows, f"{bucket}/broken")
    file = window_files(url)[1]
    storage.write_atomic(file, b"not Arrow")
    with pytest.raises(InputError, match=rf"^{file}: cannot be read as Arrow"), windows_here(url):
        pytest.fail("it is broken")


@pytest.fixture
def config(tiny_windows: str, tiny_bert: str) -> DistillConfig:
    return DistillConfig(
        data=tiny_windows,
        student=tiny_bert,
        objective=("prediction",),
        batch_size=4,
        epochs=0.5,
        threads=1,
    )


def test_training_from_a_store_is_training_from_a_disk(
    config: DistillConfig, remote: str, tmp_path: Path, temporary: Path, requests: Counter[str]
) -> None:
    train(config, LocalSession(tmp_path / "disk"))
    train(replace(config, data=remote), LocalSession(tmp_path / "store"))
    states = [
        torch.load(next((tmp_path / name).glob("step-*")) / "optimizer.pt", weights_only=True)["trainee"]
        for name in ("disk", "store")
    ]
    assert all(torch.equal(states[1][name], tensor) for name, tensor in states[0].items())
    assert max(of_windows(requests).values()) <= 2
    assert copies(temporary) == []


def test_driver_counts_windows_without_reading_any(
    tiny_windows: str, tiny_squad: str, tiny_bert: str, bucket: str, here: list[str], requests: Counter[str]
) -> None:
    window = WindowConfig(max_seq_len=64, doc_stride=8, max_query_len=20)
    made = TeacherLogitsConfig(
        data=tiny_squad, teachers=(tiny_bert,), window=window, rows_per_shard=2, threads=1
    )
    url = f"{bucket}/facts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyqa_ray.teacher_logits.work.connected", contextlib.nullcontext)
        teacher_logits(made, url)
    with windows_here(url) as files:
        data = WindowData(files, 0)
    requests.clear()
    facts = window_facts(url)
    assert of_windows(requests) == {}
    assert (facts.windows, facts.teachers, facts.has_labels) == (len(data), 1, data.has_labels)
    assert facts.longest == 64 >= data.longest
    plain = DistillConfig(data=url, student=tiny_bert, objective=("prediction",), batch_size=4, threads=1)
    assert check(plain) == len(data)
    assert of_windows(requests) == {}
