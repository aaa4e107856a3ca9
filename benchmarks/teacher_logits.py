"""Windows per second of the teachers' pass against the same model in a plain loop padded to 384.

python benchmarks/teacher_logits.py
python benchmarks/teacher_logits.py --scale

Both sides get paragraphs and questions as text, in one process and in turns. Ours is the work of one actor:
it cuts windows, runs the teacher and builds the Arrow table. The plain loop tokenises pairs as transformers'
examples do, pads each window to 384 tokens and runs 32 at a time. ``--scale`` runs the whole stage on local
Ray over more and more copies of the paragraphs, with a teacher so small that everything else shows.
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from machine import machine, show
from numpy.typing import NDArray
from transformers import BertConfig, BertForQuestionAnswering

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.core.cluster import connected
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import teacher_logits
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

SEED = 13
BATCH_WINDOWS = 32
SCALES = (1, 4, 16)
_SAMPLE_S = 0.05


def main() -> None:
    """Measure, then print and keep the figures."""
    arguments = _arguments()
    paragraphs = squad.read_squad(arguments.data)
    if arguments.paragraphs:  # spread over the articles
        paragraphs = paragraphs[:: max(1, len(paragraphs) // arguments.paragraphs)][: arguments.paragraphs]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.scale:
            name, figures = "teacher_logits_scale", scale(arguments, paragraphs, Path(folder))
        else:
            name, figures = "teacher_logits", compare(arguments, paragraphs)
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": name, **figures, "machine": machine()})
    show(name, figures)


def compare(arguments: argparse.Namespace, paragraphs: list[squad.Paragraph]) -> dict[str, Any]:
    """Time our pass and the plain loop in turns; then, apart, how much of our time the model takes."""
    config = TeacherLogitsConfig(
        data=arguments.data,
        teachers=(arguments.model,),
        threads=arguments.threads,
        num_gpus=1.0 if arguments.device == "cuda" else 0.0,
    )
    writer = WindowWriter(config)
    engine = _engine(writer)
    network = pretrained.load_qa_model(arguments.model).to(engine.device, engine.model.dtype).eval()
    tokenizer = pretrained.load_tokenizer(arguments.model)
    table = squad.to_table(paragraphs)
    writer(table.slice(0, 4))
    padded_logits(network, tokenizer, paragraphs[:4], config)
    ours_s, plain_s = [], []
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        made, counts = writer(table)
        between = time.perf_counter()
        plain = padded_logits(network, tokenizer, paragraphs, config)
        ours_s.append(between - began)
        plain_s.append(time.perf_counter() - between)
    windows = int(counts["windows"])
    return {
        "model": Path(arguments.model).name,
        "device": arguments.device,
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "paragraphs": len(paragraphs),
        "windows": windows,
        "mean_window_tokens": round(counts["tokens"] / windows, 1),
        "rounds": arguments.repeats,
        "ours_windows_per_s": _speeds(windows, ours_s),
        "padded_384_windows_per_s": _speeds(len(plain), plain_s),
        "ratio": round(statistics.median(p / o for o, p in zip(ours_s, plain_s, strict=True)), 2),
        "model_share_of_our_time": round(model_share(writer, table), 3),
        "largest_logit_difference": _difference(made, plain),
    }


@torch.inference_mode()
def padded_logits(
    network: torch.nn.Module, tokenizer: Any, paragraphs: list[squad.Paragraph], config: TeacherLogitsConfig
) -> NDArray[np.float32]:
    """Start logits of all windows, ``(windows, 384)``, padded and in fixed batches."""
    pairs = [(question.question, each.context) for each in paragraphs for question in each.questions]
    encoded = tokenizer(
        *map(list, zip(*pairs, strict=True)),
        truncation="only_second",
        max_length=config.window.max_seq_len,
        stride=config.window.doc_stride,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    named = {name: encoded[name] for name in tokenizer.model_input_names}
    device = next(network.parameters()).device
    starts = []
    for first in range(0, len(encoded["input_ids"]), BATCH_WINDOWS):
        batch = {name: rows[first : first + BATCH_WINDOWS].to(device) for name, rows in named.items()}
        starts.append(network(**batch).start_logits.float().cpu())
    logits: NDArray[np.float32] = torch.cat(starts).numpy()
    return logits


def model_share(writer: WindowWriter, table: pa.Table) -> float:
    """Share of the pass's wall time within the model's forward."""
    network, marks = _engine(writer).model, []

    def mark(*_: object) -> None:
        if next(network.parameters()).device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())

    hooks = [network.register_forward_pre_hook(mark), network.register_forward_hook(mark)]
    began = time.perf_counter()
    writer(table)
    whole = time.perf_counter() - began
    for hook in hooks:
        hook.remove()
    return float(np.diff(np.reshape(marks, (-1, 2))).sum()) / whole


def _engine(writer: WindowWriter) -> TorchEngine:
    engine = writer.teachers[0].engine
    assert isinstance(engine, TorchEngine), "--model is no export"
    return engine


def scale(arguments: argparse.Namespace, paragraphs: list[squad.Paragraph], folder: Path) -> dict[str, Any]:
    """Seconds and memory of the whole stage over 1, 4 and 16 times the same work."""
    model = _smallest_teacher(folder / "teacher")
    measured: list[dict[str, Any]] = []
    with connected():
        for times in (1, *SCALES):  # the first is to warm up
            data = write_copies(paragraphs, times * arguments.base, folder / f"data-{len(measured)}")
            config = TeacherLogitsConfig(data=data, teachers=(model,), threads=arguments.threads)
            output = str(folder / f"output-{len(measured)}")
            began = time.perf_counter()
            with peak_memory() as peak:
                report = teacher_logits(config, output)
            seconds = time.perf_counter() - began
            one = {"scale": times, "paragraphs": report.paragraphs, "windows": report.windows}
            measured.append({**one, "seconds": round(seconds, 2), **peak})
    small, middle, large = measured[1:]
    slopes = [
        (after["seconds"] - before["seconds"]) / (after["windows"] - before["windows"])
        for before, after in ((small, middle), (middle, large))
    ]
    return {
        "runs": measured[1:],
        "ms_per_further_window": [round(1000 * slope, 3) for slope in slopes],
        "actor_memory_16x_over_1x": round(large["actor_mb"] / small["actor_mb"], 3),
        "driver_memory_16x_over_1x": round(large["driver_mb"] / small["driver_mb"], 3),
        "driver_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }


def write_copies(paragraphs: list[squad.Paragraph], times: int, folder: Path) -> str:
    """Write the paragraphs several times over, as a finished augmentation, which is read where it lies."""
    folder.mkdir()
    for number in range(times):
        rows = [replace(each, paragraph_id=f"{each.paragraph_id}-{number}") for each in paragraphs]
        pq.write_table(squad.to_table(rows), folder / f"part-{number:06d}.parquet", compression="zstd")
    document = {"stage": "augment", "config": {"copies": times}, "inputs": {}, "report": {}}
    storage.write_json(str(folder / stage_folder.SUCCESS), document)
    return str(folder)


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Sample resident memory, in MB: of this process, and of the largest Ray process that works for it."""
    import psutil  # Ray brings it

    found = {"driver_mb": 0.0, "actor_mb": 0.0}
    done, driver = threading.Event(), psutil.Process()

    def note(process: psutil.Process) -> None:
        with suppress(psutil.NoSuchProcess):
            if process == driver or process.name().startswith("ray::"):
                name = "driver_mb" if process == driver else "actor_mb"
                found[name] = max(found[name], round(process.memory_info().rss / 1e6, 1))

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            for process in (driver, *driver.children(recursive=True)):
                note(process)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _smallest_teacher(folder: Path) -> str:
    """A BERT of one layer x 32 with random weights and the bundled encoder's tokenizer."""
    tokenizer = pretrained.load_tokenizer(pretrained.default_encoder())
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(SEED)
    BertForQuestionAnswering(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _speeds(windows: int, seconds: list[float]) -> dict[str, float]:
    speeds = [windows / each for each in seconds]
    summary = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
    return {name: round(value, 1) for name, value in summary.items()}


def _difference(made: pa.Table, plain: NDArray[np.float32]) -> float | None:
    """Between both sides' start logits; None where they cut other windows (a very long question)."""
    rows = made["start_logits"].to_pylist()
    if len(rows) != len(plain):
        return None
    pairs = zip(rows, plain, strict=True)
    return round(max(float(np.abs(np.array(row) - its[: len(row)]).max()) for row, its in pairs), 4)


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default=bundled.asset(bundled.MODEL), help="teacher: local folder or hub id (ours)")
    data = bundled.asset("squad2_train.json")
    add("--data", default=data, help="SQuAD JSON or paragraphs (bundled excerpt)")
    add("--paragraphs", type=int, help="paragraphs to take (all)")
    add("--threads", type=int, default=cores, help="torch threads (all cores)")
    add("--repeats", type=int, default=3, help="rounds (3)")
    add("--device", default="cpu", choices=["cpu", "cuda"], help="(cpu)")
    add("--scale", action="store_true", help="the whole stage on 1, 4 and 16 times the data instead")
    add("--base", type=int, default=8, help="copies of the data that 1x stands for (8)")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"teacher_logits: {error}")
