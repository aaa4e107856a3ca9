"""The student of a run of recipe ``mini`` beside its teachers and its int8 form: quality, speed, failures.

    python jobs/pipeline.py --recipe mini --data train.json --dev dev.json … --output out/mini
    python benchmarks/mini.py --run out/mini --dev dev.json --calibration train.json

Quality is what the run's own evaluations measured, at thresholds fitted on articles that nobody learned from.
Speeds are taken here, one model after the other, in turns.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine, show

from tinyqa_ray import metrics, storage
from tinyqa_ray.configs import EvaluateConfig, ExportConfig
from tinyqa_ray.evaluate import evaluate
from tinyqa_ray.reader import Reader, measure
from tinyqa_ray.reader.export import export
from tinyqa_ray.reader.mean import load_mean

TEACHERS = ("teacher-a", "teacher-b")
KEPT = ("exact", "f1", "has_ans_f1", "no_ans_f1", "forced_exact", "forced_f1", "calibration_error")
ROUNDS = 3
SHOWN = 3
"""Examples of each kind of failure."""


def main() -> None:
    """Collect, export, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of a finished run of recipe mini")
    parser.add_argument("--dev", required=True, help="SQuAD JSON that the run was measured on")
    parser.add_argument("--calibration", required=True, help="SQuAD JSON for the int8 export")
    parser.add_argument("--questions", type=int, default=300, help="questions of a round of timing")
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    run = Path(arguments.run)
    figures = {
        name: measured(run / f"{name}-evaluation")
        for name in ("teachers", *TEACHERS, "baseline", "student")
        if (run / f"{name}-evaluation").is_dir()
    }
    student = str(run / "student" / "model")
    with tempfile.TemporaryDirectory() as folder:
        int8 = str(Path(folder) / "int8")
        export(ExportConfig(model=student, calibration=arguments.calibration), int8)
        evaluate(EvaluateConfig(model=int8, data=arguments.dev), str(Path(folder) / "evaluation"))
        figures["student, int8"] = measured(Path(folder) / "evaluation")
        speeds = questions_per_s(student, int8, run, arguments.dev, arguments.questions)
    made = {
        "figures": figures,
        "kept": {
            name: round(100 * figures["student"][name] / figures["teachers"][name], 1)
            for name in ("f1", "best_f1", "forced_f1")
        },
        "questions_per_s": speeds,
        "speed_of_student_to_teachers": round(speeds["student"] / speeds["teachers"], 2),
        "failures": failures(student, arguments.dev),
    }
    if arguments.output:
        text = json.dumps({"benchmark": "mini", **made, "machine": machine()}, indent=2, ensure_ascii=False)
        Path(arguments.output).write_text(text + "\n")
    show("mini", made)


def measured(folder: Path) -> dict[str, float]:
    """Figures of a finished evaluation, in percent."""
    found = storage.read_json(str(folder / "metrics.json"))
    best = {name: found["official"][name] for name in ("best_exact", "best_f1")}
    settings = {name: found[name] for name in ("no_answer_threshold", "temperature")}
    shown = {name: found[name] for name in KEPT} | best | {"always_abstain": found["always_abstain"]}
    return {name: round(value, 2) for name, value in shown.items()} | settings


def questions_per_s(student: str, int8: str, run: Path, dev: str, count: int) -> dict[str, float]:
    """Questions read per second; the best of ``ROUNDS`` rounds."""
    asked = measure.questions_of(dev)[:count]
    teachers = Reader.from_pretrained(str(run / TEACHERS[0] / "model"))
    teachers.engine = load_mean([str(run / name / "model") for name in TEACHERS], device="cpu")
    readers = {
        "teachers": teachers,
        "student": Reader.from_pretrained(student),
        "student, int8": Reader.from_pretrained(int8),
    }
    best = dict.fromkeys(readers, float("inf"))
    for _ in range(ROUNDS):
        for name, reader in readers.items():
            began = time.perf_counter()
            measure.read(reader, asked, 30)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: round(len(asked) / seconds, 1) for name, seconds in best.items()}


def failures(model: str, dev: str) -> dict[str, Any]:
    """How the model is wrong at its threshold, how often, and examples of what it was surest of."""
    reader, asked = Reader.from_pretrained(model), measure.questions_of(dev)
    readings, _ = measure.read(reader, asked, 30)
    predictions, na_probs = measure.predicted(asked, readings)
    scored = metrics.per_question(measure.gold(asked), predictions)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each, f1, answerable in zip(asked, scored.f1, scored.has_answer, strict=True):
        question = each.question
        answered = na_probs[question.id] <= reader.settings.no_answer_threshold
        if answerable and answered and f1 < 1:
            kind = "another span" if f1 == 0 else "too long or too short a span"
        elif answerable and not answered:
            kind = "no answer where there is one"
        elif answered and not answerable:
            kind = "an answer where there is none"
        else:
            continue
        example = {
            "question": question.question,
            "gold": question.answers[0].text if question.answers else None,
            "predicted": predictions[question.id] if answered else None,
            "na_prob": round(na_probs[question.id], 3),
        }
        kinds.setdefault(kind, []).append(example)
    for kind, found in kinds.items():
        found.sort(key=lambda example: example["na_prob"], reverse=kind.startswith("no "))
    return {kind: {"questions": len(found), "surest": found[:SHOWN]} for kind, found in kinds.items()}


if __name__ == "__main__":
    main()
