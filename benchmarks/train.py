"""Windows trained on per second: our loop, the same padded to 384, and Haystack 1's distillation in one run.

python benchmarks/train.py --teacher FOLDER

Two parts. Loops: some steps of both stages over the same windows and from the same student: ours in fp32 and
in bf16, padded to 384 tokens in random order, and with two workers of one thread each. Peer: both stages from
data to student, the teacher's pass included, by us and by ``FARMReader``, and what the students score on
held-out questions. The student has every second layer of the teacher. Each contestant has a process of its
own. The first run makes the peer's environment: some GB, from PyPI.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import machine, show
from peak import peaks
from peers import distil_inputs
from peers.environment import interpreter
from peers.process import Process, Reply
from peers.tinyqa_reader import MAX_ANSWER_TOKENS
from peers.tinyqa_train import STAGES, write_windows

from tinyqa_ray.core import bundled, processor, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate import measure, squad_metrics
from tinyqa_ray.reader import Reader

SEED = 13
OURS: dict[str, dict[str, Any]] = {"tinyqa": {}}
if processor.has_bf16():
    OURS["tinyqa bf16"] = {"precision": "bf16"}
PADDED, TWO_WORKERS = "tinyqa padded to 384", "tinyqa, 2 workers"
LOOPS = {**OURS, PADDED: {"padded": True}, TWO_WORKERS: {"workers": 2}}
"""Settings of our contestants, beside those shared."""


def main() -> None:
    """Measure both parts, then print and keep the figures."""
    arguments = _arguments()
    quiet_models()
    shared = ("paragraphs", "batch_size", "threads")
    figures = {
        "teacher": Path(arguments.teacher).name,
        **{name: getattr(arguments, name) for name in shared},
        "settings": distil_inputs.SETTINGS,
        "peak": peaks(arguments.threads),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = distil_inputs.job(
            arguments.data, arguments.paragraphs, arguments.teacher, arguments.threads, folder
        )
        if arguments.steps:
            figures["loops"] = compare_loops(arguments, job, figures["peak"], folder)
        if not arguments.skip_peer:
            figures["peer"] = compare_peer(arguments, job, folder)
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "train", **figures, "machine": machine()})
    show("train", figures)


def compare_loops(
    arguments: argparse.Namespace, job: dict[str, Any], peak: dict[str, float], folder: Path
) -> dict[str, Any]:
    """Speeds of our training loop over windows that are there, in turn in every round."""
    windows = write_windows(job["data"], job["teacher"], arguments.threads, folder / "windows")
    job = {**job, "windows": windows, "steps": arguments.steps}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(Process("tinyqa_train", {**job, **own})) for name, own in LOOPS.items()
        }
        replies: dict[str, list[Reply]] = {name: [] for name in processes}
        for _ in range(arguments.repeats):
            for name, process in processes.items():
                replies[name].append(_ask(name, process, arguments.batch_size))
    speeds = {name: _loop_speeds(name, every, peak) for name, every in replies.items()}
    medians = {
        name: {stage: speed["samples_per_s"]["median"] for stage, speed in stages.items()}
        for name, stages in speeds.items()
    }
    return {
        "steps": arguments.steps,
        "rounds": arguments.repeats,
        "speeds": speeds,
        "ratio_to_padded": {name: _ratios(medians[name], medians[PADDED]) for name in OURS},
        "two_workers_to_one": _ratios(medians[TWO_WORKERS], medians["tinyqa"]),
    }


def compare_peer(arguments: argparse.Namespace, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Both stages from data to student, once each, and the students' scores."""
    # The peer compares attention after softmax, so both teach the same.
    job = {**job, "epochs": arguments.epochs, "attention_maps": "probabilities"}
    contestants = {name: ("tinyqa_train", own, sys.executable) for name, own in OURS.items()}
    contestants["farm"] = ("farm_distil", {}, interpreter("farm", Path(arguments.environments)))
    students, replies, speeds = {}, {}, {}
    for name, (module, own, python) in contestants.items():
        students[name] = str(folder / name)
        with Process(module, {**job, **own, "output": students[name]}, python) as process:
            replies[name] = _ask(name, process, arguments.batch_size)
        distil_inputs.copy_tokenizer(job["student"], students[name])
        stages = {stage: replies[name].result[stage] for stage in STAGES}
        loops: dict[str, float] = {
            stage: seen["samples"] / seen["loop_seconds"] for stage, seen in stages.items()
        }
        whole = sum(seen["samples"] for seen in stages.values()) / replies[name].seconds
        speeds[name] = {**loops, "whole": whole}
    return {
        "epochs": arguments.epochs,
        "windows": {name: reply.result[STAGES[0]]["windows"] for name, reply in replies.items()},
        "samples_per_s": {name: _rounded(speed) for name, speed in speeds.items()},
        "ratio_to_farm": {name: _ratios(speeds[name], speeds["farm"]) for name in OURS},
        "seconds": {name: _seconds(reply) for name, reply in replies.items()},
        "scores": _all_scores(arguments, job, students, folder),
        "versions": {name: reply.versions for name, reply in replies.items()},
    }


def _ask(name: str, process: Process, batch_size: int) -> Reply:
    reply = process.ask("train", batch_size=batch_size)
    print(f"{name}: {reply.seconds:.0f} s", file=sys.stderr)
    return reply


def _loop_speeds(name: str, replies: Sequence[Reply], peak: dict[str, float]) -> dict[str, Any]:
    """By stage, windows and real tokens a second, and the share of the matrix peak of its precision."""
    flops = 1e9 * peak["bf16_gflops" if LOOPS[name].get("precision") == "bf16" else "fp32_gflops"]
    speeds: dict[str, Any] = {}
    for stage in STAGES:
        seen = [reply.result[stage] for reply in replies]
        operations = statistics.median(one["operations"] / one["loop_seconds"] for one in seen)
        speeds[stage] = {
            "samples_per_s": _summary(one["samples"] / one["loop_seconds"] for one in seen),
            "tokens_per_s": _summary(one["tokens"] / one["loop_seconds"] for one in seen),
            "share_of_peak": round(operations / flops, 3),
        }
    return speeds


def _all_scores(
    arguments: argparse.Namespace, job: dict[str, Any], students: dict[str, str], folder: Path
) -> dict[str, Any]:
    """Scores of the students, of the one they start from, and of the teacher."""
    asked = distil_inputs.held_out(arguments.dev, arguments.dev_paragraphs, folder)
    scored = {"teacher": job["teacher"], "student at the start": job["student"], **students}
    return {"questions": len(asked), **{name: _scores(model, asked) for name, model in scored.items()}}


def _scores(model: str, asked: Sequence[measure.Asked]) -> dict[str, Any]:
    """Official F1 in percent: at threshold 0.5, at the best one for these questions, and forced to answer."""
    reader = Reader.from_pretrained(model, device="cpu", precision="fp32", cut_questions=True)
    readings, _ = measure.read(reader, asked, MAX_ANSWER_TOKENS)
    scored = measure.Scored.of(asked, readings)
    best = squad_metrics.best_threshold(scored.per_question, scored.na_probs)
    plain, at_best = (scored.summary(threshold) for threshold in (0.5, best))
    found = {"f1": plain.f1, "best_f1": at_best.f1, "always_abstain": plain.always_abstain}
    # Without answerable questions nothing can be forced.
    return _rounded(found if plain.forced_f1 is None else {**found, "forced_f1": plain.forced_f1})


def _seconds(reply: Reply) -> dict[str, float]:
    """Of the whole and of its parts; the peer's teacher runs within its second stage."""
    return _rounded({"whole": reply.seconds, **{n: part["seconds"] for n, part in reply.result.items()}})


def _ratios(ours: dict[str, float], its: dict[str, float]) -> dict[str, float]:
    return _rounded({name: speed / its[name] for name, speed in ours.items()})


def _summary(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return _rounded({"median": statistics.median(values), "min": min(values), "max": max(values)})


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--teacher", default=bundled.asset(bundled.MODEL), help="local folder (the package's model)")
    add("--data", default=bundled.asset("squad2_train.json"), help="SQuAD JSON to train on (bundled excerpt)")
    add("--dev", default=bundled.asset("squad2_dev.json"), help="held-out SQuAD JSON (bundled excerpt)")
    add("--paragraphs", type=int, default=30, help="to train on (30)")
    add("--dev-paragraphs", type=int, default=40, help="to measure on (40)")
    add("--epochs", type=int, default=1, help="of each stage, against the peer (1)")
    add("--batch-size", type=int, default=8, help="windows of a step (8)")
    add("--steps", type=int, default=12, help="of each stage, in the loops; 0 leaves that part out (12)")
    add("--repeats", type=int, default=2, help="rounds of the loops (2)")
    add("--threads", type=int, default=cores, help="of every contestant (all cores)")
    add("--environments", default="runs/benchmarks/environments", help="where the peer is installed")
    add("--skip-peer", action="store_true", help="the loops alone")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"train: {error}")
