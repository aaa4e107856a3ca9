"""Our distillation as a contestant: the teacher's pass, then both stages, without Ray, by some workers."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from peers.group_session import GroupSession
from peers.protocol import Job, Prepare, Query, serve
from peers.tinyqa_shares import matrix_operations
from tinyqa_ray.configs import DistillConfig, Objective, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill import loop
from tinyqa_ray.distill.batches import Batch, Index, Order, WindowData
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER, window_files
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

STAGES: tuple[Objective, ...] = ("intermediate", "prediction")


class PaddedData(WindowData):
    """Windows that are all padded to ``max_seq_len``, as the peer's are."""

    def batch(self, rows: Index, whole: Index) -> Batch:
        """As there, but longer."""
        batch = super().batch(rows, whole)
        more = WindowConfig().max_seq_len - batch.input_ids.shape[1]
        fill = {"input_ids": self.pad_id, "token_type_ids": 0, "token_mask": 0}
        logits = {} if batch.start_logits is None else {"start_logits": 0, "end_logits": 0}
        longer: dict[str, Any] = {
            name: functional.pad(getattr(batch, name), (0, more), value=value)
            for name, value in {**fill, **logits}.items()
        }
        return replace(batch, **longer)


def random_order(lengths: Index, *settings: Any) -> Order:
    """The same windows in the same number of batches, with no regard to their length."""
    return Order(np.zeros_like(lengths), *settings)


def load(job: Job) -> Prepare:
    """Folders in, a model folder out; nothing is loaded before."""
    if job.get("padded"):
        loop.WindowData, loop.Order = PaddedData, random_order  # type: ignore[attr-defined,assignment]

    def prepare(_queries: list[Query], batch_size: int) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                return distil(job, batch_size, Path(folder))

        return run

    return prepare


def distil(job: Job, batch_size: int, folder: Path) -> dict[str, Any]:
    """Distil layers, then predictions, on ``job["windows"]`` or on windows made here from ``job["data"]``.

    Returns:
        ``teacher``: ``seconds`` of the teacher's pass, 0 over windows that were there. By stage, ``seconds``
        of the whole, ``loop_seconds`` of its training loop, ``windows``, and what the loop saw: ``samples``
        (windows), their real ``tokens``, and the matrix ``operations`` over these tokens.
    """
    began = time.perf_counter()
    windows = job.get("windows") or write_windows(
        job["data"], job["teacher"], job["threads"], folder / "windows"
    )
    made: dict[str, Any] = {"teacher": {"seconds": time.perf_counter() - began}}
    student = job["student"]
    for stage in STAGES:
        config = _config(job, stage, batch_size, windows, student)
        output, metrics_file = folder / stage, folder / f"{stage}.jsonl"
        began = time.perf_counter()
        if config.workers == 1:
            loop.train(config, LocalSession(output), str(metrics_file))
        else:
            given = (config, output, metrics_file, folder / f"{stage}.rendezvous")
            spawn(_worker, given, nprocs=config.workers)  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - began
        made[stage] = {"seconds": seconds, **_seen(config, metrics_file)}
        student = str(next(output.glob("step-*")) / loop.MODEL)
    if "output" in job:
        shutil.copytree(student, job["output"])
    return made


def write_windows(data: str, teacher: str, threads: int, output: Path, *, labels_only: bool = False) -> str:
    """Make the folder of a teacher-logits stage in this process; with ``labels_only`` no teacher runs."""
    teachers = () if labels_only else (teacher,)
    config = TeacherLogitsConfig(data=data, tokenizer=teacher, teachers=teachers, threads=threads)
    with stage_folder.stage(str(output), config) as stage:
        made, counts = WindowWriter(config)(squad.to_table(squad.read_squad(data)))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        storage.write_atomic(stage.path(FOLDER, "part-000000.arrow"), sink.getvalue().to_pybytes())
        whole: dict[str, Any] = {name: int(value) for name, value in counts.items()}
        stage.publish(TeacherLogitsReport(**whole))
    return str(output)


def _config(job: Job, stage: Objective, batch_size: int, windows: str, student: str) -> DistillConfig:
    workers = job.get("workers", 1)
    # A given number of steps less half a one, as epochs are rounded up to whole steps.
    epochs = job.get("epochs") or (job["steps"] - 0.5) * batch_size / len(_data(windows))
    return DistillConfig(
        data=windows,
        student=student,
        objective=(stage,),
        teacher=job["teacher"] if stage == "intermediate" else None,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=job["learning_rates"][stage],
        warmup_ratio=job["warmup"],
        temperature=job["temperature"],
        distillation_weight=job["distillation_weight"],
        head_dropout=job["head_dropout"],
        attention_maps=job.get("attention_maps", "scores"),
        precision=job.get("precision", "fp32"),
        checkpoint_steps=1_000_000,
        workers=workers,
        threads=max(1, job["threads"] // workers),
    )


def _worker(rank: int, config: DistillConfig, output: Path, metrics_file: Path, rendezvous: Path) -> None:
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=config.workers)
    loop.train(config, GroupSession(output), str(metrics_file))
    dist.destroy_process_group()


def _data(windows: str) -> WindowData:
    return WindowData(window_files(windows), 0)


def _seen(config: DistillConfig, metrics_file: Path) -> dict[str, Any]:
    """What the training loop took, by its own rows, and saw."""
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    steps = np.diff([0, *(row["step"] for row in rows)])
    paces = np.array([row["samples_per_s"] for row in rows])
    data = _data(config.data)
    order = Order(data.lengths, config.batch_size, config.epochs, config.seed)
    lengths = np.concatenate([data.lengths[order.batch(step)] for step in range(order.steps)]).tolist()
    # A backward costs two forwards; the teacher beside the student goes forward alone.
    operations = 3 * matrix_operations(pretrained.load_config(config.student), lengths)
    if config.teacher is not None:
        operations += matrix_operations(pretrained.load_config(config.teacher), lengths)
    return {
        "loop_seconds": float((steps * config.batch_size / paces).sum()),
        "windows": len(data),
        "samples": len(lengths),
        "tokens": sum(lengths),
        "operations": operations,
    }


if __name__ == "__main__":
    serve(load, ("tinyqa-ray", "torch", "transformers", "tokenizers"))
