r"""The model that the package ships beside its teacher and its int8 form: quality, speed, scores, failures.

    python jobs/pipeline.py --recipe mini --data train.json --dev dev.json … --output out/mini
    python benchmarks/mini.py --run out/mini --dev dev.json --before FOLDER \
        --elsewhere nq_open_oracle.json quoref_contrast.json --output mini.json --plot mini.svg

All are measured here, at thresholds that were fitted on articles nobody learned from; nothing is fitted on
what is measured elsewhere. Speeds are taken in turns.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import machine, show
from matplotlib.figure import Figure

from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.evaluate import calibration, evaluate, measure
from tinyqa_ray.reader import Reader

STUDENTS = {"student": bundled.MODEL, "student, int8": bundled.INT8}
KEPT = (
    "exact",
    "f1",
    "has_ans_f1",
    "no_ans_f1",
    "answerable_left_unanswered",
    "forced_exact",
    "forced_f1",
    "calibration_error",
)
SETTINGS = ("no_answer_threshold", "temperature", "score_shift")
MAX_ANSWER_TOKENS = 30
ROUNDS = 3
SHOWN = 3
"""Examples of each kind of failure."""


def main() -> None:
    """Collect, measure, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, help="folder of the finished run that made the model")
    parser.add_argument("--dev", required=True, help="SQuAD JSON that the run was measured on")
    parser.add_argument("--before", help="model of the edition before, with its settings, to compare with")
    parser.add_argument("--elsewhere", nargs="*", default=[], help="SQuAD JSON of other kinds of text")
    parser.add_argument("--questions", type=int, default=300, help="questions of a round of timing")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--plot", help="SVG file: how right answers are against their score")
    arguments = parser.parse_args()
    run, asked = Path(arguments.run), measure.questions_of(arguments.dev)
    teacher, exported = str(run / "teacher" / "model"), run / "teacher-export"
    fitted = {teacher: str(run / "teacher-evaluation")}
    if exported.is_dir():  # several times faster than the teacher itself
        fitted[str(exported)] = fitted[teacher]
    models = {"teacher": teacher, **STUDENTS}
    if arguments.before:
        models["edition before"] = arguments.before
    with tempfile.TemporaryDirectory() as folder:

        def figures_on(data: str) -> dict[str, dict[str, float]]:
            found = {}
            for name, model in models.items():
                if name == "teacher" and exported.is_dir():
                    model = str(exported)
                output = str(Path(folder) / f"{name} on {Path(data).stem}")
                evaluate(EvaluateConfig(model=model, data=data, settings=fitted.get(model)), output)
                found[name] = measured(Path(output), measure.questions_of(data))
            return found

        figures = figures_on(arguments.dev)
        elsewhere = {Path(data).stem: figures_on(data) for data in arguments.elsewhere}
    speeds = questions_per_s(models, asked[: arguments.questions])
    reader = Reader.from_pretrained(precision="fp32")
    scored = measure.Scored.of(asked, measure.read(reader, asked, MAX_ANSWER_TOKENS)[0])
    made = {
        "figures": figures,
        "elsewhere": elsewhere,
        "kept": {
            name: round(100 * figures["student"][name] / figures["teacher"][name], 1)
            for name in ("f1", "best_f1", "forced_f1")
        },
        "questions_per_s": speeds,
        "speed_of_student_to_teacher": round(speeds["student"] / speeds["teacher"], 2),
        "speed_of_int8_student_to_teacher": round(speeds["student, int8"] / speeds["teacher"], 2),
        "failures": failures(reader, scored),
    }
    if arguments.plot:
        plot(reader, scored, arguments.plot)
    if arguments.output:
        text = json.dumps({"benchmark": "mini", **made, "machine": machine()}, indent=2, ensure_ascii=False)
        Path(arguments.output).write_text(text + "\n")
    show("mini", made)


def measured(folder: Path, asked: Sequence[measure.Asked]) -> dict[str, float]:
    """Figures of a finished evaluation, in percent."""
    found = storage.read_json(str(folder / "metrics.json"))
    best = {name: found["official"][name] for name in ("best_exact", "best_f1")}
    na_probs = storage.read_json(str(folder / "na_probs.json"))
    answerable = [na_probs[each.question.id] for each in asked if each.question.answers]
    unanswered = sum(na_prob > found["no_answer_threshold"] for na_prob in answerable)
    found["answerable_left_unanswered"] = 100 * unanswered / len(answerable)
    shown = {name: found[name] for name in KEPT} | best | {"always_abstain": found["always_abstain"]}
    # Data without unanswerable questions has no figure for them.
    found_there = {name: round(value, 2) for name, value in shown.items() if value is not None}
    return found_there | {name: found[name] for name in SETTINGS}


def questions_per_s(models: dict[str, str], asked: Sequence[measure.Asked]) -> dict[str, float]:
    """Questions read per second, by torch in fp32 or as the int8 form; the best of ``ROUNDS``."""
    readers = {
        name: Reader.from_pretrained(model, precision=None if model == bundled.INT8 else "fp32")
        for name, model in models.items()
    }
    best = dict.fromkeys(readers, float("inf"))
    for _ in range(ROUNDS):
        for name, reader in readers.items():
            began = time.perf_counter()
            measure.read(reader, asked, MAX_ANSWER_TOKENS)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: round(len(asked) / seconds, 1) for name, seconds in best.items()}


def failures(reader: Reader, scored: measure.Scored) -> dict[str, Any]:
    """How a model is wrong at its threshold, how often, and examples of what it was surest of."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    found = scored.per_question
    for each, f1, answerable in zip(scored.asked, found.f1, found.has_answer, strict=True):
        question = each.question
        answered = scored.na_probs[question.id] <= reader.settings.no_answer_threshold
        if answerable and answered and f1 < 1:
            kind = "another span" if f1 == 0 else "a span that shares words with the right one"
        elif answerable and not answered:
            kind = "no answer where there is one"
        elif answered and not answerable:
            kind = "an answer where there is none"
        else:
            continue
        example = {
            "question": question.question,
            "gold": question.answers[0].text if question.answers else None,
            "predicted": scored.predictions[question.id] if answered else None,
            "na_prob": round(scored.na_probs[question.id], 3),
        }
        kinds.setdefault(kind, []).append(example)
    for kind, examples in kinds.items():
        examples.sort(key=lambda example: example["na_prob"], reverse=kind.startswith("no "))
    return {kind: {"questions": len(each), "surest": each[:SHOWN]} for kind, each in kinds.items()}


def plot(reader: Reader, scored: measure.Scored, path: str) -> None:
    """Draw how right the best span of every question is against its score."""
    margins, right = scored.margins()
    scale = calibration.Scale(temperature=reader.settings.temperature, shift=reader.settings.score_shift)
    bins = calibration.reliability(scale.scores(margins), right)
    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
    axes.plot(bins.scores, bins.right, marker="o")
    for count, x, y in zip(bins.counts, bins.scores, bins.right, strict=True):
        if count:
            axes.annotate(str(count), (x, y), xytext=(4, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="score", ylabel="mean F1 of the best span", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{bundled.MODEL} on {len(scored.asked):,} questions of dev", fontsize=10)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
