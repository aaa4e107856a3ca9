from __future__ import annotations

import json
import math
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.distill.metrics_log import MetricsLog, RowReader, last_loss, read_rows

TERMS = {"attention": 1.0, "hidden": 2.5}


class Clock:
    """Stands for ``time``, and for a store whose writes take ``cost_s``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost_s: float = 0.0) -> None:
        self.now_s = 1000.0
        self.writes = 0
        write = storage.write_atomic

        def slow(path: str, data: bytes) -> None:
            self.now_s += cost_s
            self.writes += 1
            write(path, data)

        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(storage, "write_atomic", slow)


def add(metrics: MetricsLog, step: int, steps: int = 100, **options: Any) -> None:
    given = {"terms": TERMS, "grad_norm": 0.5, "learning_rate": 3e-5, "loss_scale": None, **options}
    metrics.add(step, steps, **given)


def test_row_tells_step_loss_and_its_terms(tmp_path: Path) -> None:
    file = str(tmp_path / "metrics.jsonl")
    metrics = MetricsLog(file)
    add(metrics, 5)
    (row,) = read_rows(file)
    assert row == metrics.rows[0]
    assert {key: row[key] for key in ("step", "steps", "loss", "attention", "hidden")} == {
        "step": 5,
        "steps": 100,
        "loss": 3.5,
        **TERMS,
    }
    assert (row["grad_norm"], row["learning_rate"]) == (0.5, 3e-5)
    assert "loss_scale" not in row


def test_loss_scale_of_fp16_is_told(tmp_path: Path) -> None:
    metrics = MetricsLog(str(tmp_path / "metrics.jsonl"))
    add(metrics, 5, loss_scale=65536.0, grad_norm=math.inf)
    (row,) = read_rows(str(tmp_path / "metrics.jsonl"))
    assert (row["loss_scale"], row["grad_norm"]) == (65536.0, None)


def strictly(file: str) -> list[dict[str, Any]]:
    """Rows as a reader sees them that takes JSON at its word."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in Path(file).read_text().splitlines()]


def test_row_of_a_step_that_fp16_skipped_is_json_without_its_loss(tmp_path: Path) -> None:
    file = str(tmp_path / "metrics.jsonl")
    metrics = MetricsLog(file)
    add(metrics, 5, terms={"prediction": math.inf, "label": 2.0}, grad_norm=math.nan, loss_scale=32768.0)
    add(metrics, 100, terms={"prediction": -math.inf, "label": math.inf}, grad_norm=math.inf)
    one, other = strictly(file)
    names = ("loss", "prediction", "label", "grad_norm")
    assert [one[name] for name in names] == [None, None, 2.0, None]
    assert [other[name] for name in names] == [None] * 4
    assert one["loss_scale"] == 32768.0
    assert read_rows(file) == metrics.rows


def test_rows_that_an_earlier_version_kept_as_infinities_are_written_as_json(tmp_path: Path) -> None:
    file = str(tmp_path / "metrics.jsonl")
    MetricsLog(file).resume(
        [{"step": 5, "steps": 10, "loss": math.inf, "label": math.nan, "grad_norm": None}]
    )
    assert strictly(file) == [{"step": 5, "steps": 10, "loss": None, "label": None, "grad_norm": None}]


@pytest.mark.parametrize(
    ("losses", "last"),
    [([3.0, 2.0], 2.0), ([3.0, None], 3.0), ([3.0, math.inf, None], 3.0), ([None, None], None), ([], None)],
)
def test_last_loss_is_that_of_a_step_that_was_taken(losses: list[float | None], last: float | None) -> None:
    assert last_loss([{"step": step, "loss": loss} for step, loss in enumerate(losses)]) == last


def test_speed_is_that_since_the_row_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    metrics = MetricsLog(None)
    for seconds, batches in ((2.0, 4), (5.0, 1)):
        for _ in range(batches):
            metrics.count(8, 800)
        clock.now_s += seconds
        add(metrics, 5)
    speeds = [(row["samples_per_s"], row["tokens_per_s"]) for row in metrics.rows]
    assert speeds == [(16.0, 1600.0), (1.6, 160.0)]


def test_clock_that_stood_still_gives_a_finite_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    metrics = MetricsLog(None)
    metrics.count(8, 800)
    add(metrics, 5)
    assert math.isfinite(metrics.rows[0]["tokens_per_s"])


def test_rank_without_a_file_keeps_its_rows_to_itself(tmp_path: Path) -> None:
    metrics = MetricsLog(None)
    add(metrics, 5)
    assert len(metrics.rows) == 1
    assert list(tmp_path.iterdir()) == []


def test_resumed_curve_has_no_gap_and_no_repeat(tmp_path: Path) -> None:
    file = str(tmp_path / "metrics.jsonl")
    first = MetricsLog(file)
    for step in (5, 10, 15):
        add(first, step)
    second = MetricsLog(file)
    second.resume(first.rows[:2])  # as of the checkpoint of step 10
    assert [row["step"] for row in read_rows(file)] == [5, 10], "what came after it is no longer true"
    for step in (15, 20):
        add(second, step, steps=20)
    assert [row["step"] for row in read_rows(file)] == [5, 10, 15, 20]


def test_slow_store_is_written_less_often_but_the_last_step_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "metrics.jsonl")
    clock = Clock(monkeypatch, cost_s=1.0)
    metrics = MetricsLog(file)
    for step in range(1, 101):
        clock.now_s += 1.0
        add(metrics, step)
        if step == 1:
            assert len(read_rows(file)) == 1, "the driver waits for the first row"
    assert 4 <= clock.writes <= 7
    assert read_rows(file) == metrics.rows
    assert len(metrics.rows) == 100


def test_one_write_that_took_minutes_does_not_hide_the_rows_for_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "metrics.jsonl")
    clock = Clock(monkeypatch, cost_s=200.0)
    metrics = MetricsLog(file)
    add(metrics, 1)
    clock.now_s += 59.0
    add(metrics, 2)
    assert len(read_rows(file)) == 1
    clock.now_s += 2.0
    add(metrics, 3)
    assert len(read_rows(file)) == 3


def test_fast_store_gets_every_row_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(tmp_path / "metrics.jsonl")
    clock = Clock(monkeypatch, cost_s=0.001)
    metrics = MetricsLog(file)
    for step in range(1, 6):
        clock.now_s += 0.1
        add(metrics, step)
        assert len(read_rows(file)) == step


@pytest.mark.parametrize("where", ["local", "memory"])
def test_run_that_wrote_nothing_has_no_rows(tmp_path: Path, where: str) -> None:
    folder = str(tmp_path) if where == "local" else f"memory://{uuid.uuid4().hex}"
    assert read_rows(storage.join(folder, "metrics.jsonl")) == []


@pytest.fixture(params=["local", "memory"])
def metrics(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = str(tmp_path) if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return storage.join(folder, "metrics.jsonl")


def lines(*steps: int, loss: float = 1.0) -> bytes:
    return "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step in steps).encode()


def steps_of(rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_growing_file_is_read_once(metrics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    loads = json.loads

    def counted(text: bytes) -> Any:
        parsed.append(len(text))
        return loads(text)

    monkeypatch.setattr(json, "loads", counted)
    reader = RowReader(metrics)
    assert reader.new() == []
    for last in range(1, 21):
        storage.write_atomic(metrics, lines(*range(1, last + 1)))
        assert steps_of(reader.new()) == [last]
        assert reader.new() == []
    assert len(parsed) == 20


def test_half_written_line_waits_for_its_rest(metrics: str) -> None:
    whole = lines(5, 10)
    reader = RowReader(metrics)
    found = []
    for end in range(len(whole) + 1):
        storage.write_atomic(metrics, whole[:end])
        found += [(end, row["step"]) for row in reader.new()]
    assert found == [(len(lines(5)), 5), (len(whole), 10)]


@pytest.mark.parametrize(
    "broken", [b'{"step": 7, "lo', b"\xff\x00", b"", b"7", b'{"loss": 1.0}', b'{"step": "7"}', b"[5]"]
)
def test_line_that_is_no_row_is_left_out_and_told_once(
    metrics: str, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader = RowReader(metrics)
    for more in (lines(10), lines(10, 15)):
        storage.write_atomic(metrics, lines(5) + broken + b"\n" + more)
        reader.new()
    assert steps_of(read_rows(metrics)) == [5, 10, 15]
    (record,) = caplog.records
    assert record.message.startswith(f"{metrics}: b")
    assert "is not a row of metrics and is left out" in record.message


@pytest.mark.parametrize("steps", [(5,), (5, 10), (5, 10, 15), (5, 10, 15, 20)])
def test_file_that_was_written_anew_is_read_from_its_start(metrics: str, steps: tuple[int, ...]) -> None:
    """As a resumed run does: the rows of its checkpoint, and perhaps already some after it."""
    reader = RowReader(metrics)
    storage.write_atomic(metrics, lines(5, 10, 15))
    assert steps_of(reader.new()) == [5, 10, 15]
    storage.write_atomic(metrics, lines(*steps, loss=7.0))
    assert [(row["step"], row["loss"]) for row in reader.new()] == [(step, 7.0) for step in steps]


def test_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: cannot be read"):
        read_rows(str(tmp_path / "metrics.jsonl"))


@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=5))
def test_numbers_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    file = str(tmp_path_factory.mktemp("rows") / "metrics.jsonl")
    metrics = MetricsLog(file)
    for step, value in enumerate(values, start=1):
        add(metrics, step, len(values), terms={"label": value}, grad_norm=value)
    assert read_rows(file) == metrics.rows
    assert [row["label"] for row in read_rows(file)] == [
        each if math.isfinite(each) else None for each in values
    ]
    written = Path(file).read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == list(range(1, len(values) + 1))


def test_time_of_a_pause_is_left_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that in which a checkpoint is measured."""
    clock = Clock(monkeypatch)
    metrics = MetricsLog(None)
    metrics.count(60, 600)
    clock.now_s += 2
    with metrics.paused():
        clock.now_s += 100
    clock.now_s += 1
    add(metrics, 5)
    assert metrics.rows[-1]["samples_per_s"] == pytest.approx(20)
    clock.now_s += 4
    metrics.count(40, 400)
    add(metrics, 10)
    assert metrics.rows[-1]["samples_per_s"] == pytest.approx(10)


def test_failed_write_is_told_once_and_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = str(tmp_path / "metrics.jsonl")
    clock = Clock(monkeypatch)
    works = storage.write_atomic
    failures: list[Exception] = [InputError("no space"), StoreError("busy"), OSError(5, "broken")]

    def failing(path: str, data: bytes) -> None:
        if failures:
            raise failures.pop(0)
        works(path, data)

    monkeypatch.setattr(storage, "write_atomic", failing)
    metrics = MetricsLog(file)
    for step in range(1, 6):
        clock.now_s += 100
        add(metrics, step)
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 1
    assert "no space" in caplog.text


def test_busy_store_holds_up_the_training_at_the_last_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []
    monkeypatch.setattr(storage, "write_atomic", lambda path, data: tried.append(faults._patience_s()))
    metrics = MetricsLog("s3://bucket/metrics.jsonl")
    add(metrics, 1, 2)
    add(metrics, 2, 2)
    assert tried == [0.0, faults.PATIENCE_S]
