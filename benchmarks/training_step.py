"""Where the time of a training step goes, and what order and collation cost at 3 million windows, on a CPU.

python benchmarks/training_step.py

Ten files of random windows are linked until there are two thousand, so that disk and cache hold them. Half of
the files have windows of 384 tokens, half of 170 on average. The student is the 6×384 encoder of the extra
``quickstart``. What is neither its computing nor the exchange nor the optimiser is what a faster device would
wait for.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import show

from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.distill import feed, loop
from tinyqa_ray.distill.batches import Order, WindowData
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.strategies import DataParallel
from tinyqa_ray.distill.taken import LateFigures, Taken
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, schema, window_files

WINDOWS_A_FILE, DISTINCT = 1500, 10
COMPUTING = ("forward", "backward", "exchange", "optimiser")
SEED = 13


def main() -> None:
    """Measure both, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    quiet_models()
    with tempfile.TemporaryDirectory() as folder:
        windows = written(Path(folder) / "windows", arguments.files)
        began = time.perf_counter()
        data = WindowData(window_files(windows), 0)
        opened = time.perf_counter() - began
        reading = {f"batch of {size}": read(data, size) for size in (32, 96)}
        shares = trained(windows, len(data), Path(folder) / "run", arguments)
    figures = {"windows": len(data), "files": arguments.files, "opening_s": round(opened, 2)}
    settings = {"batch_size": arguments.batch_size, "threads": arguments.threads}
    show("training_step", {**figures, "reading": reading, "step": {**settings, **shares}})


def written(output: Path, files: int) -> str:
    """A finished folder of windows whose tokens and logits are random."""
    rng = np.random.default_rng(SEED)
    config = TeacherLogitsConfig(data="random", teachers=("random",))
    count = files * WINDOWS_A_FILE
    report = TeacherLogitsReport(
        paragraphs=count, questions=count, windows=count, tokens=0, answerable_windows=count
    )
    with stage_folder.stage(str(output), config) as stage:
        for number in range(files):
            file = Path(stage.path(FOLDER, f"part-{number:06d}.arrow"))
            if number < DISTINCT:
                storage.write_atomic(str(file), random_windows(rng, number % 2 == 0))
            else:
                file.hardlink_to(file.with_name(f"part-{number % DISTINCT:06d}.arrow"))
        stage.publish(report)
    return str(output)


def random_windows(rng: np.random.Generator, full: bool) -> bytes:
    """An Arrow file of windows: ``full`` ones of 384 tokens, or of 170 on average."""
    count = WINDOWS_A_FILE
    lengths = np.full(count, 384) if full else np.clip(rng.normal(170, 70, count), 30, 384)
    ends = np.concatenate([[0], np.cumsum(lengths.astype(np.int32))]).astype(np.int32)
    tokens = int(ends[-1])

    def lists(values: np.ndarray) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(ends), pa.array(values))

    zeros, ones = np.zeros(tokens, np.int32), np.ones(count, np.int32)
    columns = {
        "window_id": rng.integers(0, 1 << 60, count),
        "question_id": ["question"] * count,
        "paragraph_id": ["paragraph"] * count,
        "copy": ones,
        "input_ids": lists(rng.integers(1000, 30000, tokens).astype(np.int32)),
        "token_type_ids": lists(zeros),
        "context_start": ones,
        "offsets": lists(np.zeros(tokens, np.int32)),
        "start_position": ones,
        "end_position": ones,
        "start_logits": lists(rng.normal(size=tokens).astype(np.float16)),
        "end_logits": lists(rng.normal(size=tokens).astype(np.float16)),
    }
    table = pa.table(columns, schema=schema())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def read(data: WindowData, batch_size: int) -> dict[str, float]:
    """Milliseconds of order and collation: at the start of training, and around the end of an epoch.

    Those of the thread's own time on a core say the same on a machine that is busy with other things.
    """
    order = Order(data.lengths, batch_size, 3.0, SEED)
    border = len(data) // batch_size
    drawing, wall, core = [], [], []
    for step in (*range(128), *range(border - 64, border + 64)):
        began, began_on_core = time.perf_counter(), time.thread_time()
        rows = order.batch(step)
        drawing.append(1000 * (time.thread_time() - began_on_core))
        data.batch(rows, rows)
        wall.append(1000 * (time.perf_counter() - began))
        core.append(1000 * (time.thread_time() - began_on_core))
    # A permutation of all windows is drawn once an epoch, not once in so many steps as here.
    first, second = np.argsort(drawing)[-2:]
    drawn = (drawing[first] + drawing[second]) / 2
    return {
        "median_ms": round(statistics.median(wall), 2),
        "median_on_core_ms": round(statistics.median(core), 2),
        "mean_on_core_ms": round((sum(core) - 2 * drawn) / len(core) + drawn / border, 2),
        "permutation_once_an_epoch_on_core_ms": round(drawn, 1),
    }


class Clock:
    """Seconds by name; what is called within another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Count a block under ``name``."""
        began = time.perf_counter()
        self._inner.append(0.0)
        yield
        taken = time.perf_counter() - began
        self.seconds[name] += taken - self._inner.pop()
        self._inner[-1] += taken

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of a function or method under ``name``."""
        call = getattr(owner, attribute)

        def timed(*given: Any, **options: Any) -> Any:
            with self.of(name):
                return call(*given, **options)

        setattr(owner, attribute, timed)


def trained(windows: str, count: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train some steps; the share of each part, and the milliseconds of all that is not computing."""
    clock, begun = Clock(), [0.0]
    clock.watch(DataParallel, "forward", "forward")
    clock.watch(DataParallel, "backward", "backward")
    clock.watch(DataParallel, "step", "optimiser")
    clock.watch(LocalSession, "total", "exchange")
    clock.watch(Taken, "figures", "finiteness")
    clock.watch(LateFigures, "add", "metrics")
    fed, warm_up = feed.fed, 1

    @contextmanager
    def watched(prepare: Callable[..., Any], steps: range, device: Any) -> Iterator[Iterator[Any]]:
        with fed(prepare, steps, device) as inputs:

            def waited() -> Iterator[Any]:
                for number in range(len(steps)):
                    if number == warm_up:
                        clock.seconds.clear()
                        begun[0] = time.perf_counter()
                    with clock.of("waiting for order, collation and copy"):
                        given = next(inputs)
                    yield given
                begun.append(time.perf_counter())

            yield waited()

    loop.fed = watched  # type: ignore[attr-defined]
    steps = warm_up + arguments.steps
    config = DistillConfig(
        data=windows,
        student=pretrained.default_encoder(),
        objective=("prediction",),
        batch_size=arguments.batch_size,
        epochs=(steps - 0.5) * arguments.batch_size / count,
        checkpoint_steps=10 * steps,
        threads=arguments.threads,
        seed=SEED,
    )
    checkpoint = LocalSession.checkpoint
    LocalSession.checkpoint = lambda *given: None  # type: ignore[method-assign]
    loop.train(config, LocalSession(folder), str(folder / "metrics.jsonl"))
    LocalSession.checkpoint = checkpoint  # type: ignore[method-assign]
    whole = begun[-1] - begun[0]
    seconds = {**clock.seconds, "other": whole - sum(clock.seconds.values())}
    beside = {name: value for name, value in seconds.items() if name not in COMPUTING}
    return {
        "ms": round(1000 * whole / arguments.steps),
        "percent": {name: round(100 * value / whole, 2) for name, value in seconds.items()},
        "beside_computing_ms": {
            name: round(1000 * value / arguments.steps, 2) for name, value in beside.items()
        },
        "most_percent_beside_computing": round(100 * max(beside.values()) / whole, 2),
    }


if __name__ == "__main__":
    main()
