from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import watch as module
from tinyqa_ray.distill.metrics_log import RowReader
from tinyqa_ray.distill.watch import dev_figures, watched

WAIT_S = 120.0


class Log:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []
        self.closed: list[bool] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        assert not self.closed
        self.points.append((step, values))

    def close(self, *, failed: bool = False) -> None:
        self.closed.append(failed)

    def curve(self, name: str) -> list[tuple[int, float]]:
        return [(step, values[name]) for step, values in self.points if name in values]


class Run:
    """The files of a run, as its workers write them."""

    def __init__(self, folder: str) -> None:
        self.metrics, self.dev = storage.join(folder, "metrics.jsonl"), storage.join(folder, "dev")
        self.log = Log()
        self.told: list[tuple[int, int, str]] = []

    def write_rows(self, *steps: int, loss: float | None = 1.0) -> None:
        rows = [
            {"step": step, "steps": 40, "loss": loss, "label": loss, "samples_per_s": 12.34} for step in steps
        ]
        storage.write_atomic(self.metrics, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def write_dev(self, step: int, f1: float) -> None:
        figures = {"exact": f1 - 5, "f1": f1, "best_f1": f1 + 1, "has_ans_f1": None, "questions": 300}
        storage.write_json(storage.join(self.dev, f"step-{step:09d}.json"), {"step": step, **figures})

    def progress(self, step: int, steps: int, *, note: str) -> None:
        self.told.append((step, steps, note))

    def watched(self) -> Any:
        return watched(self.metrics, self.dev, self.progress, [self.log])


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    monkeypatch.setattr(module, "_REMOTE_POLL_S", 0.01)
    return Run(str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}/out")


def wait(until: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < end, "nothing was passed on"
        time.sleep(0.005)


def test_rows_and_figures_are_passed_on_while_the_run_goes_on(run: Run) -> None:
    with run.watched():
        run.write_rows(5, 10)
        wait(lambda: len(run.log.points) == 2)
        run.write_dev(10, 60.0)
        wait(lambda: len(run.log.points) == 3)
        run.write_rows(5, 10, 15)
        run.write_dev(20, 70.0)
        wait(lambda: len(run.log.points) == 5)
        assert run.log.closed == []
    assert run.log.curve("loss/total") == [(5, 1.0), (10, 1.0), (15, 1.0)]
    assert run.log.curve("loss/label") == [(5, 1.0), (10, 1.0), (15, 1.0)]
    assert run.log.curve("dev/f1") == [(10, 60.0), (20, 70.0)]
    assert run.log.closed == [False]


def test_what_comes_last_is_passed_on_in_order_as_the_run_ends(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_S", 3600.0)
    monkeypatch.setattr(module, "_REMOTE_POLL_S", 3600.0)
    with run.watched():
        run.write_rows(5, 10, 15)
        for step, f1 in ((20, 70.0), (10, 60.0)):
            run.write_dev(step, f1)
    assert [step for step, _ in run.log.curve("loss/total")] == [5, 10, 15]
    assert [step for step, _ in run.log.curve("dev/f1")] == [10, 20]
    assert len(run.told) == 1


def test_rows_written_again_after_a_retry_are_passed_once(run: Run) -> None:
    run.write_rows(5, 10, 15)
    with run.watched():
        wait(lambda: len(run.log.points) == 3)
        run.write_rows(5, 10, loss=7.0)  # as of the checkpoint of step 10
        wait(lambda: [step for step, *_ in run.told[-1:]] == [10])
        run.write_rows(5, 10, 15, loss=7.0)
        wait(lambda: [step for step, *_ in run.told[-1:]] == [15])
        run.write_rows(5, 10, 15, 20, loss=7.0)
    assert run.log.curve("loss/total") == [(5, 1.0), (10, 1.0), (15, 1.0), (20, 7.0)]


def test_resumed_run_passes_on_all_that_is_there(run: Run) -> None:
    """A tracker that is opened anew starts from nothing."""
    run.write_rows(5, 10)
    run.write_dev(10, 60.0)
    for _ in range(2):
        run.log = Log()
        with run.watched():
            pass
        assert [step for step, _ in run.log.curve("loss/total")] == [5, 10]
        assert run.log.curve("dev/f1") == [(10, 60.0)]


def test_progress_is_told_steps_loss_speed_and_dev(run: Run) -> None:
    with run.watched():
        run.write_rows(5)
        wait(lambda: run.told)
        assert run.told[0] == (5, 40, "loss 1.000, 12.3 windows/s")
        run.write_dev(5, 60.0)
        run.write_rows(5, 10)
    step, steps, note = run.told[-1]
    assert (step, steps) == (10, 40)
    assert note == "loss 1.000, 12.3 windows/s, dev EM 55.0 F1 60.0 (best threshold 61.0)"


def test_progress_goes_on_over_a_step_that_fp16_skipped(run: Run) -> None:
    with run.watched():
        run.write_rows(5, loss=None)
        wait(lambda: run.told)
    assert run.told[0] == (5, 40, "loss –, 12.3 windows/s")
    assert run.log.curve("loss/total") == []


def test_progress_is_told_nothing_before_the_first_row(run: Run) -> None:
    with run.watched():
        time.sleep(0.05)
    assert run.told == []


def test_run_is_watched_without_progress_or_trackers(run: Run) -> None:
    run.write_rows(5)
    with watched(run.metrics, run.dev, None, []):
        pass


@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_failed_run_closes_its_trackers_as_failed(run: Run, error: type[BaseException]) -> None:
    def fail() -> None:
        with run.watched():
            run.write_rows(5, 10)
            raise error

    with pytest.raises(error):
        fail()
    assert [step for step, _ in run.log.curve("loss/total")] == [5, 10]
    assert run.log.closed == [True]


def test_store_that_does_not_answer_for_a_while_is_asked_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    new = RowReader.new

    def flaky(reader: RowReader) -> list[dict[str, Any]]:
        asked.append(reader.file)
        if len(asked) <= 3:
            raise InputError(f"{reader.file}: no route to host")
        return new(reader)

    monkeypatch.setattr(RowReader, "new", flaky)
    with run.watched():
        run.write_rows(5)
        wait(lambda: run.log.points)
    assert run.log.curve("loss/total") == [(5, 1.0)]


def test_store_that_is_gone_at_the_end_costs_the_curve_and_not_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(reader: RowReader) -> list[dict[str, Any]]:
        raise InputError(f"{reader.file}: no route to host")

    monkeypatch.setattr(RowReader, "new", gone)
    with run.watched():
        pass
    assert run.log.closed == [False]
    assert "a curve of this run is incomplete: InputError" in caplog.text


def test_any_error_is_told_once_and_the_run_is_watched_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    new, asked = RowReader.new, []

    def broken(reader: RowReader) -> list[dict[str, Any]]:
        asked.append(reader.file)
        if len(asked) <= 3:
            raise RuntimeError("out of luck")
        return new(reader)

    monkeypatch.setattr(RowReader, "new", broken)
    with run.watched():
        run.write_rows(5)
        wait(lambda: run.log.points)
    assert [record.message for record in caplog.records] == [
        "a curve of this run is incomplete: RuntimeError: out of luck"
    ]


def test_tracker_or_progress_that_fails_costs_its_own_curve(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Log):
        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise OSError("disk full")

    def progress(step: int, steps: int, *, note: str) -> None:
        raise ValueError("no terminal")

    failing = Failing()
    with watched(run.metrics, run.dev, progress, [failing, run.log]):
        run.write_rows(5, 10)
        run.write_dev(10, 60.0)
    assert run.log.curve("loss/total") == [(5, 1.0), (10, 1.0)]
    assert run.log.curve("dev/f1") == [(10, 60.0)]
    assert failing.closed == run.log.closed == [False]
    assert len(caplog.records) == 2
    assert "disk full" in caplog.text
    assert "no terminal" in caplog.text


def test_figures_that_cannot_be_read_hide_no_others(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with run.watched():
        storage.write_atomic(storage.join(run.dev, "step-000000005.json"), b"{")
        run.write_rows(5)
        run.write_dev(10, 60.0)
        wait(lambda: len(run.log.points) == 2)
    assert run.log.curve("loss/total") == [(5, 1.0)]
    assert run.log.curve("dev/f1") == [(10, 60.0)]
    (record,) = caplog.records
    assert "step-000000005.json: not JSON" in record.message


def test_figures_are_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(path: str) -> Any:
        read.append(path.rpartition("/")[2])
        return read_json(path)

    read_json = storage.read_json
    monkeypatch.setattr(storage, "read_json", counted)
    with run.watched():
        for step in (10, 20, 30):
            run.write_dev(step, 60.0)
            run.write_rows(step)
            wait(lambda step=step: [each for each, *_ in run.told[-1:]] == [step])
    assert read == ["step-000000010.json", "step-000000020.json", "step-000000030.json"]


@pytest.mark.parametrize("output", ["out", "step-1-layers/out", "step-2"])
def test_dev_figures_are_those_of_checkpoints_by_step(tmp_path: Path, output: str) -> None:
    """Also where a folder on the way is called like one of theirs."""
    run = Run(str(tmp_path / output))
    assert dev_figures(run.dev) == []
    for step in (1000, 200, 30):
        run.write_dev(step, 50.0)
    storage.write_json(storage.join(run.dev, "teacher-0.json"), {"model": "m", "f1": 80.0})
    storage.write_json(storage.join(run.dev, "baseline.json"), {"model": "m", "f1": 40.0})
    assert [row["step"] for row in dev_figures(run.dev)] == [30, 200, 1000]
