"""One training stage on Ray Train: what it leaves, and how it ends where it cannot go on."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import modified
import numpy as np
import pyarrow as pa
import pytest
from ray import cloudpickle

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import DistillReport, distill
from tinyqa_ray.distill.batches import Order, WindowData
from tinyqa_ray.distill.checkpoints import newest_checkpoint, sealed
from tinyqa_ray.distill.work import train_loop_per_worker
from tinyqa_ray.teacher_logits.window_dataset import window_files

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

STEPS = 40
# Softmax cancels what these add to every token: their gradient is rounding alone, which AdamW scales up.
UNSEEN = ("key.bias", "layer.0.output.LayerNorm.bias", "qa_outputs.bias")

Loop = Callable[[dict[str, Any]], dict[str, Any] | None]


@pytest.fixture(autouse=True, scope="module")
def _loops_by_value() -> Iterator[None]:
    """Workers cannot import this file, so its training loops travel whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def taught(ray_cluster: None, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """Both a teacher's layers and its predictions; no dropout, so any number of workers trains alike."""
    config = fire.training(tmp_path_factory.mktemp("inputs"), tiny_squad, STEPS, dropout=0.0)
    return replace(config, checkpoint_steps=10)


@pytest.fixture(scope="module")
def config(taught: DistillConfig) -> DistillConfig:
    return replace(taught, objective=("labels",), objective_weights=None, teacher=None)


@pytest.fixture(scope="module")
def calm(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers."""
    output = tmp_path_factory.mktemp("calm") / "out"
    distill(replace(config, workers=2), str(output))
    return output


def last_checkpoint(output: Path) -> int:
    """The step of the newest whole checkpoint of an unfinished stage."""
    (run,) = (output / "checkpoints").iterdir()
    newest = newest_checkpoint(str(run))
    assert newest is not None
    step: int = sealed(Path(newest))["step"]
    return step


def counted(loop: Loop, log: Path) -> Loop:
    """The training loop, noting in a file each time that it is begun for a step to be made."""

    def run(options: dict[str, Any]) -> dict[str, Any] | None:
        if storage.kind(options["failure_file"]) != "file":
            with log.open("a") as stream:
                stream.write("begun\n")
        return loop(options)

    return run


def test_stage_publishes_a_student_once(config: DistillConfig, calm: Path) -> None:
    assert fire.unlike(calm / "model", Path(config.student)) != []
    logged = fire.rows(calm)
    assert [row["step"] for row in logged] == list(range(5, STEPS + 1, 5))
    assert sum(row["loss"] for row in logged[-3:]) < sum(row["loss"] for row in logged[:3])
    assert not (calm / "checkpoints").exists()

    before = modified.times(calm)
    report = distill(config, str(calm))
    assert isinstance(report, DistillReport)
    assert (report.steps, report.loss) == (STEPS, logged[-1]["loss"])
    made = fire.weights(calm / "model")
    assert report.parameters == sum(p.numel() for n, p in made.items() if "position_ids" not in n)
    assert modified.times(calm) == before
    with pytest.raises(InputError, match=r"other settings \(learning_rate 0.001 there, 1.0 here\)"):
        distill(replace(config, learning_rate=1.0), str(calm))


def test_two_workers_train_what_one_process_does(config: DistillConfig, calm: Path, tmp_path: Path) -> None:
    fire.assert_close(calm / "model", fire.trained_without_ray(config, tmp_path / "plain"), but=UNSEEN)


def test_window_that_spoils_the_loss_is_named_and_not_tried_again(
    taught: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = tmp_path / "windows"
    shutil.copytree(taught.data, windows)
    config = replace(taught, data=str(windows), checkpoint_steps=2)
    data = WindowData(window_files(config.data), 0)
    order = Order(data.lengths, config.batch_size, config.epochs, config.seed)
    # The window that comes last in the first epoch.
    step = len(data) // config.batch_size
    row = int(order.batch(step - 1)[0])
    (spoilt,) = data.window_ids(np.array([row]))
    spoil(windows, spoilt)
    seen = next(number for number in range(order.steps) if row in order.batch(number))
    log, output = tmp_path / "log", tmp_path / "out"
    monkeypatch.setattr("tinyqa_ray.distill.work.train_loop_per_worker", counted(train_loop_per_worker, log))

    with pytest.raises(InputError) as refused:
        distill(config, str(output))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(f"step {seen + 1} of {STEPS}: the loss is not finite")
    assert "prediction nan" in message
    named = message.partition("on windows ")[2].partition(";")[0]
    assert [int(number) for number in named.split(", ")] == data.window_ids(order.batch(seen))
    assert log.read_text().splitlines() == ["begun"]
    assert last_checkpoint(output) == seen // 2 * 2


def spoil(windows: Path, window_id: int) -> None:
    """Make a teacher's logit of one window infinite, as an overflow of fp16 does."""
    for file in window_files(str(windows)):
        table = pa.ipc.open_stream(pa.OSFile(file)).read_all()
        lists = table["start_logits"].to_pylist()
        for number, found in enumerate(table["window_id"].to_pylist()):
            if found == window_id:
                lists[number][1] = float("inf")
        place = table.column_names.index("start_logits")
        column = pa.array([np.array(row, np.float16) for row in lists], table.schema.field(place).type)
        table = table.set_column(place, table.schema.field(place), column)
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def on_a_full_disk(options: dict[str, Any]) -> dict[str, Any] | None:
    """The training loop of a worker whose disk is full once it has written a checkpoint."""
    make = tempfile.mkdtemp
    made: list[str] = []

    def mkdtemp(*arguments: Any, **named: Any) -> str:
        folder = make(*arguments, **named)
        if str(named.get("prefix")).startswith("tinyqa-checkpoint"):
            made.append(folder)
            if len(made) > 1:
                (Path(folder) / "optimizer.pt").symlink_to("/dev/full")
        return folder

    tempfile.mkdtemp = mkdtemp
    try:
        return train_loop_per_worker(options)
    finally:
        tempfile.mkdtemp = make


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line_and_leaves_the_last_checkpoint(
    config: DistillConfig, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("tinyqa_ray.distill.work.train_loop_per_worker", counted(on_a_full_disk, log))
        with pytest.raises(InputError) as refused:
            distill(replace(config, workers=2), str(output))
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith("no space left to write a checkpoint (")
    assert "set TMPDIR" in message
    assert log.read_text().splitlines() == ["begun"] * 2
    assert last_checkpoint(output) == 10
