"""Pairs answered per second, text in and answers with offsets out: our reader and its peers in one run.

python benchmarks/reader.py --model FOLDER --documents passages.jsonl --questions questions.jsonl

Every contestant has the same model, precision (int8 apart), threads and pairs, and its own process; all are
measured in turn in each round, and F1 stands beside every speed. The first run makes the peers' environments:
some GB each, from PyPI; after that it ends within --minutes, by leaving out rounds.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import machine, show
from peak import peaks
from peers import inputs
from peers.contest import BATCH_SIZES, F1, compare
from peers.environment import OPTIMUM, REQUIREMENTS, interpreter
from peers.inputs import Model
from rich.console import Console
from rich.table import Table

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.core import bundled, processor, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.evaluate import measure
from tinyqa_ray.export import export

SEED = 13
PEERS = {**REQUIREMENTS, **OPTIMUM}
CALIBRATION_PAIRS = 100
_ROUNDS_SHARE = 0.7
"""Share of a model's time that loading, F1 and rounds may take; the rest is for shares of the peak."""
_CHECKED = 200
"""Questions on which an export checks itself; F1 is measured on others here."""
EXPORTS = ("fp32", "onnx fp32", "bf16", "int8", "onnx int8")
"""Precisions of exports, to OpenVINO where they do not say onnx."""
FASTEST = (
    ("fp32", "onnx fp32", "onnx int8")  # OpenVINO's int8 is slower than its fp32 without VNNI
    if processor.saturates_int8()
    else ("fp32", "bf16" if processor.has_bf16() else "onnx fp32", "int8", "onnx int8")
)
"""Those that are made unless others are asked for."""


def main() -> None:
    """Compare on every model, then print and keep the figures."""
    arguments = _arguments()
    workloads = inputs.workloads(
        arguments.documents,
        arguments.questions,
        pairs=arguments.pairs,
        corpus_documents=arguments.corpus_documents,
        seed=SEED,
    )
    peers = {
        name: interpreter(name, Path(arguments.environments))
        for name in PEERS
        if name not in arguments.skip and (arguments.device == "cpu" or name not in OPTIMUM)
    }
    began = time.monotonic()
    peak = peaks(arguments.threads) if arguments.device == "cpu" else {}
    settings = {name: getattr(arguments, name) for name in ("device", "precision", "threads")}
    asked = [each for each in measure.questions_of(arguments.f1_data) if each.question.answers]
    asked = measure.spread(asked, arguments.f1_questions)
    calibration = measure.spread(measure.questions_of(arguments.calibration), CALIBRATION_PAIRS)
    job = {
        **settings,
        "workloads": {**workloads, F1: [(each.question.question, [each.context]) for each in asked]},
        "calibration": [(each.question.question, each.context) for each in calibration],
        "has": sorted(processor.features()),
    }
    golds = [[answer.text for answer in each.question.answers] for each in asked]
    with tempfile.TemporaryDirectory() as folder:
        compared = list[dict[str, Any]]()
        models, refused = _models(arguments, Path(folder))
        for number, model in enumerate(models):
            left_s = 60 * arguments.minutes - (time.monotonic() - began)
            limit_s = _ROUNDS_SHARE * left_s / (len(models) - number)
            compared.append(compare(model, job, peers, peak, arguments.repeats, limit_s, golds))
    figures = {
        **settings,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "f1_questions": len(asked),
        "workloads": {
            name: {"queries": len(queries), "pairs": sum(len(contexts) for _, contexts in queries)}
            for name, queries in workloads.items()
        },
        "peak": peak,
        "refused": refused,
        "models": compared,
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "reader", **figures, "machine": machine()})
    for one in compared:
        Console(stderr=True).print(_table(one))
    show("reader", figures)


def _models(arguments: argparse.Namespace, folder: Path) -> tuple[list[Model], dict[str, str]]:
    """The models given, or the package's, and one of 6 x 768; and what was said of refused exports.

    Those lose too much F1, and are not compared: they are not the same model any more.
    """
    given = [Path(path).expanduser().absolute() for path in arguments.model or [bundled.asset(bundled.MODEL)]]
    models = [Model(name=path.name, folder=str(path), random=False) for path in given]
    if "6x768" not in arguments.skip:
        large = inputs.random_6x768(models[0].folder, folder / "6x768", SEED)
        models.append(Model(name="6x768, random", folder=large, random=True))
    if arguments.device != "cpu" or "exports" in arguments.skip:
        return models, {}
    made, refused = [], dict[str, str]()
    for number, model in enumerate(models):
        folders = {each: str(folder / f"{number}-{each}") for each in arguments.exports}
        for each, output in [*folders.items()]:
            if why := _refused(arguments, model, each, output):
                print(f"left out: {model.name}, {each}: {why}", file=sys.stderr)
                refused[f"{model.name}, {each}"] = why
                del folders[each]
        made.append(replace(model, exports=folders))
    return made, refused


def _refused(arguments: argparse.Namespace, model: Model, precision: str, output: str) -> str:
    """Export a model; what was said if the export was refused, else nothing."""
    config = ExportConfig(
        model=model.folder,
        precision=precision.split()[-1],  # type: ignore[arg-type]
        format="onnx" if precision.startswith("onnx") else None,
        calibration=arguments.calibration,
        check_questions=_CHECKED,
        max_f1_drop=arguments.max_f1_drop,
    )
    if config.precision == "int8" and not processor.saturates_int8():
        config = replace(config, weight_bits=8)  # as forms that a machine makes for itself
    if model.random:  # its F1 means nothing
        config = replace(config, max_f1_drop=100.0, check_questions=16, calibration_questions=50)
    try:
        export(config, output)
    except InputError as error:
        return str(error).removeprefix(f"{model.folder}: ")
    return ""


def _table(compared: dict[str, Any]) -> Table:
    columns = ("workload", "contestant", "pairs/s", "min–max", "to best peer", "forced F1")
    table = Table(*columns, title=compared["model"])
    for workload, speeds in compared["pairs_per_s"].items():
        ratios = compared["ratio_to_best_peer"][workload]
        for name, speed in speeds.items():
            ratio = f"{ratios[name]:.2f}x" if name in ratios else ""
            spread = f"{speed['min']:.1f}–{speed['max']:.1f}"
            scored = compared["forced_f1"].get(name)
            shown = "" if scored is None else f"{scored:.1f}"
            table.add_row(workload, name, f"{speed['median']:.1f}", spread, ratio, shown)
    notes = {name: compared[name] for name in ("agreement", "tokenise_decode_share", "share_of_peak")}
    table.caption = "\n".join(f"{name}: {json.dumps(value)}" for name, value in notes.items() if value)
    return table


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", action="append", default=[], help="local folder; may be repeated (the package's model)")
    add("--calibration", default=bundled.asset("squad2_train.json"), help="SQuAD JSON for the exports")
    add("--max-f1-drop", type=float, default=0.5, help="points of F1 that an export may lose (0.5)")
    add("--documents", default=bundled.asset("corpus_documents.jsonl"), help="JSONL of id, text")
    add("--questions", default=bundled.asset("corpus_questions.jsonl"), help="JSONL of question, document_id")
    add("--pairs", type=_count, default=300, help="pairs drawn (300)")
    add("--corpus-documents", type=_count, default=30, help="documents of a query in corpus mode (30)")
    add("--threads", type=_count, default=cores, help="of every contestant (all cores)")
    add("--repeats", type=_count, default=3, help="most rounds (3)")
    add("--environments", default="runs/benchmarks/environments", help="where the peers are installed")
    add("--exports", nargs="+", choices=EXPORTS, default=FASTEST, help="to be made (the fastest ones here)")
    add("--skip", action="append", default=[], choices=["exports", *PEERS, "6x768"])
    add("--minutes", type=_count, default=20, help="that the run may take; rounds are left out for it (20)")
    add("--f1-data", default=bundled.asset("squad2_dev.json"), help="SQuAD JSON to measure F1 on (bundled)")
    add("--f1-questions", type=_count, default=300, help="most answerable questions of it (300)")
    add("--device", default="cpu", choices=[*BATCH_SIZES], help="cuda: no exports, larger batches (cpu)")
    add("--precision", default="fp32", choices=["fp32", "bf16", "fp16"], help="of torch models (fp32)")
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
        sys.exit(f"reader: {error}")
