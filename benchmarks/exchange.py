"""What two workers send each other in a step of training, in bytes and seconds, and what it costs in F1.

python benchmarks/exchange.py [--part wire] [--part training] [--work FOLDER]

Wire: the student of the recipe tinyroberta (6 x 768 RoBERTa, random weights) exchanges its gradients by every
setting, over a pair of virtual interfaces in two network namespaces (needs root and ``ip``; elsewhere over
the loopback interface, on which nothing else must run), with the bandwidth limited by ``tc``. Training: a
student of every second layer of a model learns labels, with two workers, from the same start and windows in
every setting. A run that was cut goes on when called again with the same --work.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from machine import machine, show
from peers import distil_inputs
from peers.group_session import GroupSession
from peers.tinyqa_reader import MAX_ANSWER_TOKENS
from peers.tinyqa_train import write_windows
from torch.multiprocessing.spawn import spawn

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.distill import loop
from tinyqa_ray.distill.batches import WindowData
from tinyqa_ray.evaluate import measure, squad_metrics
from tinyqa_ray.reader import Reader
from tinyqa_ray.teacher_logits.window_dataset import window_files

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "exchange.json"
TODAY = "none, all rows"
_ROWS: dict[str, Any] = {"embedding_gradients": "rows"}
_FROZEN: dict[str, Any] = {"freeze_embeddings": True}
WIRE: dict[str, dict[str, Any]] = {
    TODAY: {"embedding_gradients": "dense"},
    "none": _ROWS,
    "fp16": {"gradient_compression": "fp16", **_ROWS},
    "bf16, all rows": {"gradient_compression": "bf16", "embedding_gradients": "dense"},
    "bf16": {"gradient_compression": "bf16", **_ROWS},
    **{
        f"powersgd {rank}": {"gradient_compression": "powersgd", "powersgd_rank": rank, **_ROWS}
        for rank in (4, 16, 32)
    },
    "none, frozen": _FROZEN,
    "bf16, frozen": {"gradient_compression": "bf16", **_FROZEN},
    "powersgd 32, frozen": {"gradient_compression": "powersgd", "powersgd_rank": 32, **_FROZEN},
}
"""Settings by name; word embeddings by the rows touched, where nothing else is said."""
TRAINED: dict[str, dict[str, Any]] = {
    "none": {},
    "bf16": {"gradient_compression": "bf16"},
    # The same share of a width of 384 as 32 of 768.
    "powersgd 16": {"gradient_compression": "powersgd", "powersgd_rank": 16},
}
PARTS = ("wire", "training")


def main() -> None:
    """Measure the parts asked for, keep the figures of the others, and print all."""
    arguments = _arguments()
    quiet_models()
    figures: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    figures = {part: figures[part] for part in PARTS if part in figures}
    work = Path(arguments.work)
    work.mkdir(parents=True, exist_ok=True)
    if "wire" in arguments.part:
        figures["wire"] = wire(arguments, work)
    if "training" in arguments.part:
        figures["training"] = training(arguments, work)
    if "wire" in figures:
        figures["estimated: tinyroberta on four p3.2xlarge"] = estimate(figures["wire"]["settings"])
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "exchange", **figures, "machine": machine()})
    show("exchange", figures)


def wire(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Megabytes a step by setting, and seconds of the exchange without and with limits of the bandwidth."""
    model = arguments.model or bundled.asset(bundled.MODEL)
    windows = _windows(arguments.data, model, work)
    settings = {name: dict(given) for name, given in WIRE.items()}
    found: dict[str, Any] = {}
    links, rows = set(), 0
    for limit in arguments.gbit:
        with _link(limit) as (kind, prefixes, address, interface):
            links.add(kind)
            seen = _measured(settings, windows, arguments, prefixes, address, interface)
        for name, one in seen.items():
            row = found.setdefault(name, {"sent_mb": round(one["sent_mb"], 2), "seconds": {}})
            row["trained_parameters"] = one["trained_parameters"]
            rows = one["touched_rows"]
            row["seconds"]["no limit" if limit == 0 else f"{limit:g} Gbit/s"] = round(one["seconds"], 3)
    for row in found.values():
        row["fewer_times"] = round(found[TODAY]["sent_mb"] / row["sent_mb"], 1)
    return {
        "link": ", ".join(links),
        "windows_in_a_step": arguments.batch_size,
        "their_distinct_tokens": rows,
        "steps": arguments.wire_steps,
        "settings": found,
    }


STAGES = {"intermediate": (57_000, 1_270.0), "student": (5_430, 2_120.0)}
"""Steps of the two trainings of recipe tinyroberta, and windows per second of four V100 without a network."""
OTHER_HOURS = 0.53
"""Its other stages, and the start of the nodes (docs/scale.md)."""
USD_AN_HOUR = 12.62


def estimate(settings: dict[str, Any]) -> dict[str, Any]:
    """Hours and price of the recipe tinyroberta on four V100 in nodes of their own, by setting and bandwidth.

    Nothing here is measured but the bytes: four workers send 1.5 times what two do, in a ring. Without
    compression and in half precision the exchange goes on beside two thirds of the arithmetic, the backward
    pass, but for the rows, which follow it. In low rank nothing overlaps.
    """
    found: dict[str, Any] = {}
    for name, row in settings.items():
        found[name] = {}
        for gbit in (10.0, 2.5):
            sent_s = 1.5 * row["sent_mb"] * 8e6 / (gbit * 1e9)
            hours = {}
            for stage, (steps, windows_per_s) in STAGES.items():
                arithmetic_s = 96 / windows_per_s
                beside = 0.0 if "powersgd" in name else min(sent_s, arithmetic_s * 2 / 3)
                hours[stage] = steps * (arithmetic_s + sent_s - beside) / 3_600
            all_h = sum(hours.values()) + OTHER_HOURS
            found[name][f"{gbit:g} Gbit/s"] = {
                "exchange_s": round(sent_s, 3),
                "intermediate_h": round(hours["intermediate"], 1),
                "all_h": round(all_h, 1),
                "usd": round(all_h * USD_AN_HOUR),
            }
    return found


def training(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Loss and F1 of the same training in every setting, by seed, and the differences from ``none``."""
    model = arguments.model or bundled.asset(bundled.MODEL)
    job = distil_inputs.job(arguments.data, arguments.paragraphs, model, 2, work)
    windows = _windows(job["data"], model, work, "training-windows")
    asked = distil_inputs.held_out(arguments.dev, arguments.dev_paragraphs, work)
    runs: dict[str, dict[str, Any]] = {name: {} for name in arguments.settings}
    for seed in arguments.seeds:
        for name in runs:
            result = work / f"{name} {seed} {arguments.steps}.json"
            if not result.exists():
                config = _config(arguments, windows, job["student"], seed, TRAINED[name])
                storage.write_json(str(result), _trained(config, work / f"{name} {seed}", asked))
            runs[name][str(seed)] = json.loads(result.read_text())
            print(name, seed, runs[name][str(seed)], file=sys.stderr, flush=True)
    return {
        "model": Path(model).name,
        **{name: getattr(arguments, name) for name in ("steps", "training_batch_size", "learning_rate")},
        "questions": len(asked),
        "runs": runs,
        "less_than_none": {name: _differences(runs["none"], its) for name, its in runs.items()},
    }


def _config(
    arguments: argparse.Namespace, windows: str, student: str, seed: int, settings: dict[str, Any]
) -> DistillConfig:
    count = len(WindowData(window_files(windows), 0))
    return DistillConfig(
        data=windows,
        student=student,
        objective=("labels",),
        # Less half a step, as epochs are rounded up to whole steps.
        epochs=(arguments.steps - 0.5) * arguments.training_batch_size / count,
        batch_size=arguments.training_batch_size,
        learning_rate=arguments.learning_rate,
        attention_dropout=0.0,
        precision=arguments.precision,
        checkpoint_steps=50,
        log_steps=10,
        workers=2,
        threads=1,
        seed=seed,
        **settings,
    )


def _trained(config: DistillConfig, folder: Path, asked: list[measure.Asked]) -> dict[str, float]:
    """Train with two processes, or go on from the last checkpoint, and measure the student."""
    folder.mkdir(exist_ok=True)
    rendezvous, rows = folder / f"rendezvous-{os.getpid()}", folder / "metrics.jsonl"
    spawn(_train, (config, folder, rows, rendezvous), nprocs=2)  # type: ignore[no-untyped-call]
    losses = [json.loads(line)["loss"] for line in rows.read_text().splitlines()]
    reader = Reader.from_pretrained(
        str(next(folder.glob("step-*")) / loop.MODEL), device="cpu", precision="fp32", cut_questions=True
    )
    readings, _ = measure.read(reader, asked, MAX_ANSWER_TOKENS)
    scored = measure.Scored.of(asked, readings)
    best = scored.summary(squad_metrics.best_threshold(scored.per_question, scored.na_probs))
    last = losses[-max(1, len(losses) // 4) :]
    assert best.forced_f1 is not None
    return {
        "loss": round(statistics.fmean(last), 4),
        "best_f1": round(best.f1, 2),
        "forced_f1": round(best.forced_f1, 2),
    }


def _train(rank: int, config: DistillConfig, folder: Path, rows: Path, rendezvous: Path) -> None:
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    loop.train(config, GroupSession(folder), str(rows))
    dist.destroy_process_group()


def _differences(none: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds of what a setting loses, with their standard errors."""
    found = {}
    for figure in ("loss", "best_f1", "forced_f1"):
        lost = [none[seed][figure] - other[seed][figure] for seed in none if seed in other]
        error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else math.nan
        found[figure] = {"mean": round(statistics.fmean(lost), 4), "standard_error": round(error, 4)}
    return found


def _measured(
    settings: dict[str, Any],
    windows: str,
    arguments: argparse.Namespace,
    prefixes: list[list[str]],
    address: str,
    interface: str,
) -> dict[str, Any]:
    """Figures of the first of two workers, which are started behind ``prefixes``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = []
        for rank, prefix in enumerate(prefixes):
            its = interface.format(rank=rank)
            job = {
                "rank": rank,
                "rendezvous": f"tcp://{address}:29631",
                "interface": its,
                "workers_on_interface": 2 if its == "lo" else 1,
                "settings": settings,
                "windows": windows,
                "folder": name,
                "layers": arguments.layers,
                "batch_size": arguments.batch_size,
                "steps": arguments.wire_steps,
                "result": str(folder / f"{rank}.json"),
            }
            file = folder / f"job-{rank}.json"
            file.write_text(json.dumps(job))
            command = [*prefix, sys.executable, str(HERE / "peers" / "exchange_worker.py"), str(file)]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": its}
            processes.append(subprocess.Popen(command, env=environment))
        codes = [process.wait() for process in processes]
        if any(codes):
            sys.exit(f"exchange: a worker ended with {codes}")
        found: dict[str, Any] = json.loads((folder / "0.json").read_text())
        return found


@contextmanager
def _link(gbit: float) -> Iterator[tuple[str, list[list[str]], str, str]]:
    """Two network namespaces joined by a pair of interfaces of limited bandwidth; else the loopback."""
    names = [f"tinyqa-{os.getpid()}-{rank}" for rank in range(2)]
    ends = ["tinyqa0", "tinyqa1"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", ends[1], "netns", names[1])
        for rank, (name, end) in enumerate(zip(names, ends, strict=True)):
            _ip("-n", name, "addr", "add", f"10.77.0.{rank + 1}/24", "dev", end)
            _ip("-n", name, "link", "set", end, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            if gbit:
                limit = ["rate", f"{gbit * 1000:.0f}mbit", "burst", "4mb", "latency", "100ms"]
                tc = ["tc", "qdisc", "add", "dev", end, "root", "tbf", *limit]
                subprocess.run(["ip", "netns", "exec", name, *tc], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        if gbit:
            sys.exit("exchange: no network namespaces here, so no limits: leave --gbit at 0")
        yield "loopback", [[], []], "127.0.0.1", "lo"
        return
    else:
        prefixes = [["ip", "netns", "exec", name] for name in names]
        yield "two network namespaces", prefixes, "10.77.0.1", "tinyqa{rank}"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _windows(data: str, model: str, work: Path, name: str = "windows") -> str:
    folder = work / name
    return str(folder) if folder.exists() else write_windows(data, model, 2, folder, labels_only=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--part", choices=PARTS, action="append", help="what to measure (all)")
    add("--data", default=bundled.asset("squad2_train.json"), help="SQuAD JSON (bundled excerpt)")
    add("--dev", default=bundled.asset("squad2_dev.json"), help="held-out SQuAD JSON (bundled excerpt)")
    add("--model", help="model whose layers the student of 'training' has (the package's)")
    add("--gbit", type=float, nargs="+", default=[0.0], help="limits of the bandwidth; 0 is none (0)")
    add("--layers", type=int, default=6, help="of the student of 'wire' (6)")
    add("--batch-size", type=int, default=96, help="windows in a step of 'wire' (96)")
    add("--wire-steps", type=int, default=3, help="steps of every setting in 'wire' (3)")
    add("--paragraphs", type=int, default=400, help="to train on (400)")
    add("--dev-paragraphs", type=int, default=40, help="to measure on (40)")
    add("--steps", type=int, default=300, help="of every training (300)")
    add("--training-batch-size", type=int, default=16, help="windows in a step of 'training' (16)")
    add("--learning-rate", type=float, default=2e-4, help="of 'training' (2e-4)")
    add("--precision", default="auto", choices=["auto", "bf16", "fp32"], help="of 'training' (auto)")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of 'training' (1 2 3)")
    add("--settings", nargs="+", choices=TRAINED, default=list(TRAINED), help="of 'training' (all)")
    add("--work", default="runs/benchmarks/exchange", help="folder of windows and runs")
    add("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    arguments.part = arguments.part or list(PARTS)
    return arguments


if __name__ == "__main__":
    main()
