from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import trackers
from tinyqa_ray.distill.trackers import MLflow, TensorBoard, dev_values, training_values

ROW = {
    "step": 5,
    "steps": 20,
    "loss": 3.0,
    "attention": 1.0,
    "hidden": 2.0,
    "grad_norm": 0.5,
    "learning_rate": 3e-5,
    "tokens_per_s": 900.0,
}
NAMES = {
    "loss/total",
    "loss/attention",
    "loss/hidden",
    "optimiser/grad_norm",
    "optimiser/learning_rate",
    "speed/tokens_per_s",
}


def steps_and_values(folder: str, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(folder)
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def test_every_tracker_gets_the_same_names() -> None:
    assert set(training_values(ROW)) == NAMES
    assert training_values(ROW)["loss/attention"] == 1.0
    dev: dict[str, float | None] = {"step": 400, "f1": 71.5, "no_ans_f1": None, "questions": 300}
    assert dev_values(dev) == {"dev/f1": 71.5}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ROW)), st.sampled_from([1.0, nan, inf, -inf, None])))
def test_only_finite_values_are_points(row: dict[str, float | None]) -> None:
    finite = {key for key, value in row.items() if value == 1.0} - {"step", "steps"}
    assert list(training_values(row).values()) == [1.0] * len(finite)


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    board = TensorBoard(str(tmp_path / "tensorboard"))
    for step in (5, 10):
        board.log(step, training_values({**ROW, "loss": float(step)}))
    board.log(5, dev_values({"f1": 71.5}))
    board.close()
    folder = str(tmp_path / "tensorboard")
    assert steps_and_values(folder, "loss/total") == [(5, 5.0), (10, 10.0)]
    assert steps_and_values(folder, "dev/f1") == [(5, 71.5)]


def test_resumed_run_shows_each_point_once(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("kept")
    folder = str(tmp_path)
    for steps in ((5, 10), (5, 10, 15)):
        board = TensorBoard(folder)
        for step in steps:
            board.log(step, {"loss/total": float(step)})
        board.close()
    assert steps_and_values(folder, "loss/total") == [(5, 5.0), (10, 10.0), (15, 15.0)]
    assert other.read_text() == "kept"


def test_event_files_reach_a_url_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "COPY_S", 0.0)
    url = f"memory://{uuid.uuid4().hex}/tensorboard"

    def points() -> list[tuple[int, float]]:
        copy = tmp_path / uuid.uuid4().hex
        copy.mkdir()
        for path in storage.list_files(url):
            (copy / path.rsplit("/", 1)[-1]).write_bytes(storage.read_bytes(path))
        return steps_and_values(str(copy), "loss/total")

    board = TensorBoard(url)
    board.log(5, {"loss/total": 1.0})
    assert points() == [(5, 1.0)]
    monkeypatch.setattr(trackers, "COPY_S", 60.0)
    board.log(10, {"loss/total": 2.0})
    assert points() == [(5, 1.0)]
    board.close()
    assert points() == [(5, 1.0), (10, 2.0)]
    TensorBoard(url).close()
    assert len(storage.list_files(url)) == 1


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow store that needs neither server nor database."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(tmp_path / "mlflow")


def client(store: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store)


def steps(store: str, run_id: str, key: str) -> list[int]:
    return [point.step for point in client(store).get_metric_history(run_id, key)]


def test_mlflow_run_holds_config_and_curves(store: str) -> None:
    config = {"epochs": 2.0, "objective": ["intermediate", "prediction"], "window": {"doc_stride": 128}}
    tracker = MLflow(store, "student", config)
    for step in (5, 10):
        tracker.log(step, training_values(ROW))
    assert client(store).get_run(tracker.run_id).info.status == "RUNNING"
    tracker.close()
    run = client(store).get_run(tracker.run_id)
    assert (run.info.run_name, run.info.status) == ("student", "FINISHED")
    assert client(store).get_experiment(run.info.experiment_id).name == "tinyqa-ray"
    assert run.data.params == {
        "epochs": "2.0",
        "objective": "intermediate, prediction",
        "window.doc_stride": "128",
    }
    assert set(run.data.metrics) == NAMES
    assert steps(store, tracker.run_id, "loss/hidden") == [5, 10]


def test_resumed_mlflow_run_gets_only_what_it_lacks(store: str) -> None:
    first = MLflow(store, "student", {"workers": 1})
    first.log(5, {"loss/total": 1.0})
    first.log(10, {"loss/total": 2.0})
    first.log(800, {"dev/f1": 70.0})
    first.close(failed=True)
    assert client(store).get_run(first.run_id).info.status == "FAILED"
    second = MLflow(store, "student", {"workers": 2}, first.run_id)
    assert second.run_id == first.run_id
    for step in (5, 10, 15):
        second.log(step, {"loss/total": float(step)})
    second.log(400, {"dev/f1": 60.0})  # its evaluation took longer than that of step 800
    second.log(800, {"dev/f1": 70.0})
    second.close()
    assert steps(store, first.run_id, "loss/total") == [5, 10, 15]
    assert sorted(steps(store, first.run_id, "dev/f1")) == [400, 800]
    run = client(store).get_run(first.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"workers": "1"})


@pytest.mark.parametrize("gone", ["deleted", "unknown"])
def test_deleted_mlflow_run_is_begun_anew(store: str, gone: str) -> None:
    first = MLflow(store, "student", {})
    if gone == "deleted":
        client(store).delete_run(first.run_id)
    run_id = first.run_id if gone == "deleted" else "0" * 32
    second = MLflow(store, "student", {}, run_id)
    second.log(5, {"loss/total": 1.0})
    second.close()
    assert second.run_id != run_id
    assert steps(store, second.run_id, "loss/total") == [5]


def test_points_travel_in_batches(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = MLflow(store, "student", {})
    sizes: list[int] = []
    monkeypatch.setattr(tracker._client, "log_batch", lambda *_, metrics, **__: sizes.append(len(metrics)))
    for step in range(1500):
        tracker.log(step, {"loss/total": 1.0})
    tracker.close()
    assert sizes == [1000, 500]


def test_server_lost_in_the_middle_does_not_stop_the_training(
    store: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "SEND_S", 0.0)
    monkeypatch.setattr(trackers, "_RETRY_S", 0.0)
    tracker = MLflow(store, "student", {})
    send = tracker._client.log_batch

    def lost(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tracker._client, "log_batch", lost)
    tracker.log(5, {"loss/total": 1.0})
    assert "no route to host" in caplog.text
    monkeypatch.setattr(tracker._client, "log_batch", send)
    tracker.log(10, {"loss/total": 2.0})
    tracker.close()
    assert steps(store, tracker.run_id, "loss/total") == [5, 10]


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "http://no port:x"])
def test_store_that_cannot_be_used_is_refused_in_one_line(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match="give the address of a running server") as refusal:
        MLflow(uri, "student", {})
    assert uri in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_mlflow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InputError, match=r"pip install 'tinyqa-ray\[mlflow\]'"):
        MLflow("http://127.0.0.1:9", "student", {})


def test_mlflow_tells_nobody_that_it_is_used(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    MLflow(store, "student", {}).close()
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
