"""Every benchmark, small, within three quarters of an hour on any two cores: one JSON line each.

python benchmarks/all.py

Each has its share of the time: one that takes longer is stopped, and its line says so. docs/benchmarks.md has
figures of larger runs, by the options of each script. The environments of peers are not made here: a peer
takes part where an earlier run of a script made its environment.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from machine import no_options
from peers.environment import AUGMENTERS, OPTIMUM, REQUIREMENTS

from tinyqa_ray.core import bundled

HERE = Path(__file__).parent
ENVIRONMENTS = Path("runs/benchmarks/environments")
PLAN: dict[str, tuple[int, list[str]]] = {
    "peak": (60, []),
    "score_loss": (60, []),
    "layers": (60, ["--questions", "24"]),
    "attention": (60, ["--rounds", "2", "--lengths", "120", "384"]),
    "engines": (120, ["--questions", "32", "--repeats", "2"]),
    "reader": (300, ["--pairs", "60", "--repeats", "1", "--max-f1-drop", "100", "--skip", "6x768"]),
    "answer": (240, ["--pairs", "200", "--peer-pairs", "40", "--growth-pairs", "60", "--repeats", "1"]),
    "serve": (220, ["--requests", "200", "--seconds", "5", "--skip-int8"]),
    "augment": (120, ["--paragraphs", "3", "--copies", "5", "--repeats", "1"]),
    "teacher_logits": (120, ["--paragraphs", "20", "--repeats", "1"]),
    "train": (180, ["--paragraphs", "6", "--steps", "4", "--repeats", "1"]),
    "ray_data": (160, ["--rows", "120", "--rounds", "1", "--memory-rows", "0"]),
    "training_step": (120, ["--steps", "4"]),
    "exchange": (120, ["--part", "wire", "--layers", "1", "--batch-size", "16", "--wire-steps", "1"]),
    "quickstart": (240, []),
    "documents": (110, ["--repeats", "1"]),
    "evidence": (90, ["--questions", "40", "--rank-questions", "100"]),
    "installation": (60, []),
    "rewriting": (60, []),
    "vocabularies": (90, ["--questions", "60", "--tokens", "8000"]),
    "gpu_reader": (90, ["--minutes", "1"]),
}
"""Seconds and options of each script; together less than three quarters of an hour."""
_NOT_HERE = {
    "cascade": "needs a first model",
    "deberta": "needs the pipeline of transformers 4",
    "distillation": "hours",
    "fidelity": "trains for minutes, for its result only",
    "int8_f1": "needs a model",
    "mini": "needs the run of a recipe",
    "mini_card": "writes figures of mini into the card",
    "overlap": "needs what a model learned from",
}
"""Scripts that are left out, and why."""


def main() -> None:
    """Run all of them; the exit code says how many failed or were stopped."""
    no_options(__doc__)
    assert sum(seconds for seconds, _ in PLAN.values()) < 45 * 60
    assert {path.stem for path in HERE.glob("*.py")} == {*PLAN, *_NOT_HERE, "machine", "all"}
    bad = sum(not _ran(name, seconds, options) for name, (seconds, options) in PLAN.items())
    sys.exit(bad)


def _ran(name: str, seconds: int, options: list[str]) -> bool:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, str(HERE / f"{name}.py"), *options, *_absent_peers(name), *_model(name)],
        start_new_session=True,  # what it starts is stopped with it
    ) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
    if code:
        print(json.dumps({"benchmark": name, "failed": code}), flush=True)
    elif code is None:
        print(json.dumps({"benchmark": name, "stopped_after_s": round(time.monotonic() - began)}), flush=True)
    return code == 0


def _absent_peers(name: str) -> list[str]:
    """Leave out the peers whose environments are not there."""
    readers = {**REQUIREMENTS, **OPTIMUM}
    theirs: dict[str, Iterable[str]] = {"reader": readers, "answer": REQUIREMENTS, "augment": AUGMENTERS}
    peers = ("pipeline",) if name == "documents" else theirs.get(name, ())
    absent = [peer for peer in peers if not (ENVIRONMENTS / peer).is_dir()]
    if name == "train":
        return [] if (ENVIRONMENTS / "farm").is_dir() else ["--skip-peer"]
    return [option for peer in absent for option in ("--skip", peer)]


def _model(name: str) -> list[str]:
    """The package's model, where a script would take one of random weights."""
    return ["--model", bundled.asset(bundled.MODEL)] if name in ("answer", "serve") else []


if __name__ == "__main__":
    main()
