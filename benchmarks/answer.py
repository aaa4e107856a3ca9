"""Documents and pairs answered per second by the whole answering stage, start of Ray and model included.

python benchmarks/answer.py --model FOLDER --documents passages.jsonl --questions questions.jsonl
python benchmarks/answer.py --model FOLDER --memory

Parts: ``speed``, the stage beside its reader, its bare engine on the same windows, and the peers on a sample
of the same pairs; ``growth``, the stage over ten times the work; ``actors``, one beside two; ``candidates``,
what BM25's selection costs in recall; with ``--memory``, a made corpus far larger than Ray's object store, in
which the questions' own documents are sought. Every contestant has its own process, and all of a part are
measured in turn in each round. Ray's actors run at the same priority as the others (RAY_worker_niceness=0;
Ray's own default is 15). ``growth``, ``actors`` and ``memory`` run the export, where there is one.
"""

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import machine, show
from peers import inputs
from peers.answering import actors, growth, speed
from peers.environment import REQUIREMENTS, interpreter
from peers.process import Process
from peers.recall import coverage
from peers.tinyqa_memory import write_large_corpus
from rich.console import Console
from rich.table import Table

from tinyqa_ray.configs import CandidateConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad

SEED = 13
PARTS = ("speed", "growth", "actors", "candidates")
STORE_MB = 80
"""Ray takes no less than 75 MiB."""
_MEMORY = ("driver_mb", "actors_mb")


def main() -> None:
    """Measure the parts asked for, then print and keep the figures."""
    arguments = _arguments()
    quiet_models()
    drawn = inputs.workloads(
        arguments.documents, arguments.questions, pairs=arguments.pairs, corpus_documents=1, seed=SEED
    )["pairs"]
    job = {"threads": arguments.threads, "workloads": {"pairs": drawn}}
    bounds = {"rounds": arguments.repeats, "limit_s": 60 * arguments.minutes}
    figures: dict[str, Any] = {"threads": arguments.threads}
    terminal = Console(stderr=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = inputs.model_and_export(
            arguments.model, arguments.calibration, folder, export_it="int8" not in arguments.skip
        )
        fastest = [*models.values()][-1]
        figures |= {"model": Path(arguments.model).name, "growth_actors_memory": [*models][-1]}
        wanted = [part for part in PARTS if part not in arguments.skip]
        if "speed" in wanted:
            peers = {
                peer: interpreter(peer, Path(arguments.environments))
                for peer in REQUIREMENTS
                if peer not in arguments.skip
            }
            figures["speed"] = speed(models, job, peers, peer_pairs=arguments.peer_pairs, **bounds)
            terminal.print(_speed_table(figures["speed"]))
        if "growth" in wanted:
            figures["growth"] = growth(fastest, job, drawn[: arguments.growth_pairs], **bounds)
            terminal.print(_runs_table("growth", figures["growth"]))
        if "actors" in wanted:
            figures["actors"] = actors(fastest, job, **bounds)
            terminal.print(_runs_table("actors", figures["actors"]))
        if "candidates" in wanted:
            figures["candidates"] = candidates(arguments.squad)
        if arguments.memory:
            figures["memory"] = memory(arguments, fastest, drawn, folder)
            for run in figures["memory"]["runs"]:
                terminal.print(_memory_table(run))
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "answer", **figures, "machine": machine()})
    show("answer", figures)


def candidates(data: str) -> dict[str, Any]:
    """Recall and savings of BM25's selection on SQuAD's own questions."""
    began = time.perf_counter()
    paragraphs = squad.read_squad(data)
    read = time.perf_counter()
    found = coverage(paragraphs, CandidateConfig())
    seconds = time.perf_counter() - read
    print(f"candidates of {Path(data).name}, {seconds:.1f} s\n{found}", file=sys.stderr)
    return {
        "data": Path(data).name,
        "paragraphs": len(paragraphs),
        **asdict(found),
        "seconds": round(seconds, 2),
        "reading_seconds": round(read - began, 2),
    }


def memory(
    arguments: argparse.Namespace, model: str, drawn: list[tuple[str, list[str]]], folder: Path
) -> dict[str, Any]:
    """Memory and seconds of each pass over a large corpus; a later run finds the index of the first."""
    texts = list(dict.fromkeys(context for _, (context,) in drawn))
    documents = write_large_corpus(texts, arguments.memory_mb, folder / "large", SEED)
    own = {text: str(number) for number, text in enumerate(texts)}
    asked_of_own = [(question, [own[context]]) for question, (context,) in drawn]
    job = {
        "model": model,
        "documents": str(folder / "large"),
        "index": str(folder / "index"),
        "actors": arguments.memory_actors,
        "threads": arguments.threads,
        "actor_threads": 0,
        "store_mb": STORE_MB,
    }
    runs = []
    for count, candidates in itertools.product(arguments.memory_questions, arguments.candidates):
        asked = random.Random(SEED).sample(asked_of_own, min(count, len(asked_of_own)))
        work = {**job, "candidates": candidates, "workloads": {"questions": asked}}
        with Process("tinyqa_memory", work) as process:
            reply = process.ask("questions")
        found = {"questions": len(asked), "candidates": candidates, "seconds": round(reply.seconds, 1)}
        runs.append({**found, **reply.result})
    return {
        "object_store_mb": STORE_MB,
        "corpus_mb": arguments.memory_mb,
        "documents": documents,
        "originals": len(texts),
        "actors": arguments.memory_actors,
        "runs": runs,
    }


def _speed_table(figures: dict[str, Any]) -> Table:
    title = f"speed, {figures['pairs']} pairs, peers {figures['peer_pairs']}; rounds: {figures['rounds']}"
    table = Table("contestant", "pairs/s", "min–max", "without start-up", "documents/s", title=title)
    for name, found in figures["pairs_per_s"].items():
        stage = figures["stages"].get(name)
        more: tuple[str, ...] = ()
        if stage:
            warm, documents = stage["pairs_per_s_without_start_up"], stage["documents_per_s"]
            more = (f"{warm['median']:.1f}", f"{documents['median']:.2f}")
        table.add_row(name, f"{found['median']:.1f}", f"{found['min']:.1f}–{found['max']:.1f}", *more)
    notes = [("share of engine", figures["share_of_engine"]), ("to best peer", figures["ratio_to_best_peer"])]
    notes += [(name, stage["phases"]) for name, stage in figures["stages"].items()]
    table.caption = "\n".join(f"{name}: {json.dumps(value)}" for name, value in notes)
    return table


def _runs_table(title: str, figures: dict[str, Any]) -> Table:
    table = Table("run", "seconds", "without start-up", "pairs/s", "without start-up", title=title)
    for name, run in figures["runs"].items():
        rates = (run[rate]["median"] for rate in ("pairs_per_s", "pairs_per_s_without_start_up"))
        seconds = (run[kind] for kind in ("seconds", "seconds_without_start_up"))
        table.add_row(name, *(f"{each:.2f}" for each in (*seconds, *rates)))
    rest = {name: value for name, value in figures.items() if name != "runs"}
    table.caption = "\n".join(f"{name}: {value}" for name, value in rest.items())
    return table


def _memory_table(run: dict[str, Any]) -> Table:
    title = (
        f"memory in MB, all that is resident in brackets; {run['questions']} questions, {run['seconds']} s"
    )
    table = Table("pass", "seconds", "object store", "driver", "actors", title=title)
    table.caption = json.dumps(run["report"])
    for name, found in run["passes"].items():
        kinds = ((found.get(kind, ""), found.get(f"{kind[:-3]}_with_mapped_mb", "")) for kind in _MEMORY)
        memory = (f"{own} ({whole})" for own, whole in kinds)
        table.add_row(name, str(found["seconds"]), str(found.get("object_store_mb", "")), *memory)
    return table


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default=bundled.asset(bundled.MODEL), help="local folder (the package's model)")
    add("--calibration", default=bundled.asset("squad2_train.json"), help="SQuAD JSON for the int8 export")
    add("--documents", default=bundled.asset("corpus_documents.jsonl"), help="JSONL of id, text")
    add("--questions", default=bundled.asset("corpus_questions.jsonl"), help="JSONL of question, document_id")
    add("--squad", default=bundled.asset("squad2_train.json"), help="SQuAD JSON for the part on candidates")
    add("--pairs", type=_count, default=2000, help="pairs drawn (2000)")
    add("--peer-pairs", type=_count, default=300, help="of these, pairs that peers are asked (300)")
    add("--growth-pairs", type=_count, default=500, help="pairs that 1x stands for (500)")
    add("--threads", type=_count, default=cores, help="of every contestant (all cores)")
    add("--repeats", type=_count, default=3, help="rounds (3)")
    add("--minutes", type=float, default=15, help="no round of a part begins that would end later (15)")
    add("--environments", default="runs/benchmarks/environments", help="where the peers are installed")
    add("--skip", nargs="+", action="extend", default=[], choices=[*PARTS, "int8", *REQUIREMENTS])
    add("--memory", action="store_true", help="measure the large corpus, too")
    add("--memory-mb", type=_count, default=10 * STORE_MB, help=f"its text, in MB ({10 * STORE_MB})")
    add("--memory-questions", type=_count, nargs="+", default=[100, 5], help="of each run on it (100 5)")
    add("--memory-actors", type=_count, default=2, help="actors of its passes (2)")
    add("--candidates", type=_count, nargs="+", default=[10], help="passages of it a question (10)")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"is {text}; it must be at least 1")
    return number


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"answer: {error}")
