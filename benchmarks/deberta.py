"""Windows read per second by a DeBERTa-v2 of base size: our reader and the pipeline of transformers 4.

python benchmarks/deberta.py --output FILE

The model has the shape of DeBERTa-v3 base (12 x 768, positions in the scores) and random weights: its
answers mean nothing, its speed does. Both contestants run torch in fp32 with the same threads over the same
pairs, each in its own process and environment (see ``reader.py``), in turn in each round. The ratio of a
round is ours to the pipeline at the batch size that serves it best; the figure is their median. Where other
work shares the machine, one thread and the seconds of the processor say more than those of the clock.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from machine import machine, show
from peers import inputs
from peers.contest import BATCH_SIZES
from peers.environment import interpreter
from peers.process import Process, Reply

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.models import pretrained

SEED = 13
WARM_UP_PAIRS = 4
OURS = "tinyqa"


def main() -> None:
    """Measure both, print the ratio, and keep the figures."""
    arguments = _arguments()
    python = interpreter("pipeline", Path(arguments.environments))
    documents, questions = (bundled.asset(f"corpus_{name}.jsonl") for name in ("documents", "questions"))
    drawn = inputs.workloads(documents, questions, pairs=arguments.pairs, corpus_documents=1, seed=SEED)
    pairs = drawn["pairs"]
    with tempfile.TemporaryDirectory() as folder:
        model = inputs.random_deberta_v2(bundled.asset(bundled.MODEL), Path(folder), SEED)
        windows = Windower(pretrained.load_tokenizer(model), WindowConfig()).windows(
            [(q, text) for q, (text,) in pairs]
        )
        lengths = sorted(windows.lengths.tolist())
        job = {
            "model": model,
            "device": "cpu",
            "precision": "fp32",
            "threads": arguments.threads,
            "workloads": {"pairs": pairs},
        }
        replies = _replies(job, python, arguments.repeats)
    count = len(lengths)
    walls = {name: [count / reply.seconds for reply in every] for name, every in replies.items()}
    cpus = {name: [count / reply.cpu_seconds for reply in every] for name, every in replies.items()}
    figures = {
        "threads": arguments.threads,
        "rounds": arguments.repeats,
        "windows": {"count": count, "shortest": lengths[0], "median": statistics.median(lengths)},
        "windows_per_s": {name: _rounds(every) for name, every in walls.items()},
        "windows_per_cpu_s": {name: _rounds(every) for name, every in cpus.items()},
        "ratio_to_best_pipeline": _rounds(_ratios(walls)),
        "ratio_by_cpu_s": _rounds(_ratios(cpus)),
        "same_answers": _share_equal(replies),
        "versions": {name: every[0].versions for name, every in replies.items()},
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "deberta", **figures, "machine": machine()})
    show("deberta", figures)


def _replies(job: dict[str, Any], python: str, rounds: int) -> dict[str, list[Reply]]:
    """The replies of our reader first, then of the pipeline at each batch size, after a warm-up."""
    with ExitStack() as stack:
        ours = stack.enter_context(Process("tinyqa_reader", job))
        pipeline = stack.enter_context(Process("transformers_pipeline", job, python))
        contestants = [(OURS, ours, 1)]
        contestants += [(f"pipeline, batch {size}", pipeline, size) for size in BATCH_SIZES["cpu"]]
        for _, process, size in contestants:
            process.ask("pairs", batch_size=size, limit=WARM_UP_PAIRS)
        replies: dict[str, list[Reply]] = {name: [] for name, _, _ in contestants}
        for _ in range(rounds):
            for name, process, size in contestants:
                replies[name].append(process.ask("pairs", batch_size=size))
    return replies


def _ratios(speeds: dict[str, list[float]]) -> list[float]:
    """Of each round, our speed to the best of the others."""
    return [ours / max(theirs) for ours, *theirs in zip(*speeds.values(), strict=True)]


def _rounds(values: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(values), 2), "of_rounds": [round(value, 2) for value in values]}


def _share_equal(replies: dict[str, list[Reply]]) -> float:
    """Share of the pairs to which the pipeline, one at a time, gives the text that our reader gives."""
    ours, alone = (replies[name][-1].result for name in (OURS, "pipeline, batch 1"))
    equal = sum(bool(mine == its) for mine, its in zip(ours, alone, strict=True))
    return round(equal / len(ours), 3)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--pairs", type=int, default=32, help="pairs drawn (32)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="of every contestant (all cores)")
    add("--repeats", type=int, default=3, help="rounds (3)")
    add("--environments", default="runs/benchmarks/environments", help="where the pipeline is installed")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"deberta: {error}")
