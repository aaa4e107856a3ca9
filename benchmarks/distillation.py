"""What distillation adds to a small student's scores, part by part, on SQuAD 2.0 data.

python benchmarks/distillation.py --train train.json --dev dev.json --work FOLDER

In all arms the student starts as every second layer of the teacher, with its embeddings and head. A model's
threshold is fitted on whole articles held out of the training data, never on dev; the teacher may have
learned from them, so its forced and best F1 are the fairer figures. Every stage is one of the project's, in
a folder under --work: a run that was cut goes on when called again with the same options.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, Literal, get_args

import numpy as np
from machine import machine, show
from numpy.typing import NDArray
from peers.inputs import evenly
from rich.console import Console
from rich.table import Table

from tinyqa_ray.cli import console
from tinyqa_ray.configs import AugmentConfig, DistillConfig, EvaluateConfig, TeacherLogitsConfig
from tinyqa_ray.configs.distill import Objective, Precision
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.bundled import MODEL, asset
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill.students import evenly_spaced_layers
from tinyqa_ray.evaluate import measure, squad_metrics
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.recipe import Recipe

PATHS = ("train", "dev", "teacher", "logits_of", "work", "output")
HELD_OUT_EVERY = 4
"""Of the articles with unanswerable questions, one in so many calibrates thresholds."""
CALIBRATION_PARAGRAPHS = 60
WINDOWS_PER_S = {"labels": 24.0, "prediction": 24.0, "intermediate": 14.0, "relations": 14.0}
"""Of a 3 x 384 student of a 6 x 384 teacher, windows of 160 tokens, fp32, two AVX-512 cores."""
TEACHER_WINDOWS_PER_S, QUESTIONS_PER_S, START_S = 38.0, 90.0, 15.0
FIGURES = {
    **{"exact": "EM", "f1": "F1", "has_ans_f1": "HasAns", "no_ans_f1": "NoAns"},
    **{"forced_f1": "forced F1", "best_f1": "best F1"},
}
"""Of evaluations, with their headings; best F1 is at the threshold that is best on dev itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to teach the student: perhaps the teacher's layers first, then spans."""

    about: str
    layers: Objective | None = None
    spans: Objective = "prediction"
    layers_on: Literal["windows", "augmented-windows"] = "windows"
    spans_on: Literal["windows", "augmented-windows"] = "windows"
    longer: bool = False
    """The spans also get the epochs that others give to layers."""

    def stages(self, name: str, seed: int) -> dict[str, str]:
        """The names of its stages; arms that teach the layers alike share that stage."""
        before = {"layers": f"{self.layers}-{self.layers_on}-{seed}"} if self.layers else {}
        return {**before, "spans": f"{name}-{seed}"}


COPIES: Any = {"layers_on": "augmented-windows", "spans_on": "augmented-windows"}
ARMS = {
    "a": Arm(about="labels", spans="labels"),
    "a+": Arm(about="labels, as many steps as c", spans="labels", longer=True),
    "b": Arm(about="prediction"),
    "b+": Arm(about="prediction, as many steps as c", longer=True),
    "c": Arm(about="intermediate, then prediction", layers="intermediate"),
    "d": Arm(about="c on augmented data, equal steps", layers="intermediate", **COPIES),
    "d-": Arm(about="d, prediction on originals", layers="intermediate", layers_on="augmented-windows"),
    "e": Arm(about="relations, then prediction", layers="relations"),
}
COMPARED = (
    *("b over a", "c over a", "d over a", "e over a", "b+ over a+", "c over a+", "d over a+", "e over a+"),
    *("c over b", "c over b+", "d over c", "d- over c", "e over c", "d- over a+"),
)
"""All arms have equal steps, but for a and b, which have fewer."""


def main() -> None:
    """Run what is left of all arms, then print and perhaps keep the figures."""
    arguments = _arguments()
    quiet_models()
    work = Path(arguments.work).expanduser().absolute()
    data = _data(arguments, work)
    recipe = experiment(arguments, work)
    terminal = Console(stderr=True)
    minutes = _minutes(recipe, work, data["questions"], arguments.copies)
    terminal.print(
        f"{len(recipe.stages)} stages; about {minutes:.0f} minutes left (3 x 384, on two AVX-512 cores)"
    )
    with console.native_noise_in_a_file(), console.StageProgress(terminal) as bars:
        results = run.run(recipe, str(work), bars.starting, bars.done)
    reports: dict[str, Any] = {result.name: result.report for result in results}
    teacher = reports["teacher-evaluation"]
    students = [[f"{name}-{seed}-evaluation" for seed in arguments.seeds] for name in arguments.arms]
    speeds = [reports[evaluation].questions_per_s for evaluations in students for evaluation in evaluations]
    figures = {
        **{name: value for name, value in vars(arguments).items() if name not in PATHS},
        **data,
        "questions_per_s": {
            "teacher": round(teacher.questions_per_s, 1),
            "student": round(median(speeds), 1),
        },
        "always_abstain": round(teacher.always_abstain, 2),
        "teacher": _measured(work, ["teacher-evaluation"], reports),
        "arms": {
            name: {
                "about": ARMS[name].about,
                "windows_seen": {
                    part: reports[stage].steps * arguments.batch_size
                    for part, stage in ARMS[name].stages(name, arguments.seeds[0]).items()
                },
                **_measured(work, evaluations, reports),
            }
            for name, evaluations in zip(arguments.arms, students, strict=True)
        },
        "forced_f1_gains": _gains(arguments, work),
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "distillation", **figures, "machine": machine()})
    terminal.print(_table(figures))
    show("distillation", figures)


def experiment(arguments: argparse.Namespace, work: Path) -> Recipe:
    """Every stage of every arm and seed."""
    stages: dict[str, Any] = {}
    train = str(work / "train.json")
    teacher = str(work / "given-teacher")  # a copy, beside which its threshold can be written
    pretrained.load_qa_model(arguments.teacher).save_pretrained(teacher)
    pretrained.load_tokenizer(arguments.teacher).save_pretrained(teacher)
    depth = int(pretrained.load_config(teacher).num_hidden_layers)
    base = DistillConfig(
        data="@windows",
        student=teacher,
        student_layers=evenly_spaced_layers(depth, depth // 2),
        objective=("labels",),
        distillation_weight=0.75,
        temperature=1.5,
        epochs=3,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        attention_dropout=0.0,
        precision=arguments.precision,
        checkpoint_steps=100,
        use_gpu=arguments.gpu,
    )
    read_by = arguments.logits_of or teacher
    with_logits = TeacherLogitsConfig(data=train, teachers=(read_by,), num_gpus=float(arguments.gpu))
    evaluated = EvaluateConfig(
        model=teacher, data=arguments.dev, fit_threshold=str(work / "calibration.json")
    )
    stages |= {"windows": with_logits, "teacher-evaluation": evaluated}
    arms = [ARMS[name] for name in arguments.arms]
    if any("augmented-windows" in (arm.layers_on, arm.spans_on) for arm in arms):
        stages["augmented"] = AugmentConfig(data=train, embeddings=teacher, copies=arguments.copies)
        needs_logits = any(arm.spans_on == "augmented-windows" for arm in arms)
        of_copies = with_logits if needs_logits else TeacherLogitsConfig(data=train, tokenizer=teacher)
        stages["augmented-windows"] = replace(of_copies, data="@augmented")
    for seed in arguments.seeds:
        for name in arguments.arms:
            stages |= _taught(name, replace(base, seed=seed), arguments)
            stages[f"{name}-{seed}-evaluation"] = replace(evaluated, model=f"@{name}-{seed}/model")
    return Recipe(name="distillation", stages=tuple(stages.items()))


def _taught(name: str, base: DistillConfig, arguments: argparse.Namespace) -> dict[str, DistillConfig]:
    """The training stages of an arm; steps are equal whether there are copies or not."""
    arm, epochs = ARMS[name], arguments.epochs
    size = {"windows": 1, "augmented-windows": 1 + arguments.copies}
    names, stages = arm.stages(name, base.seed), {}
    spans = base
    if arm.layers:
        stages[names["layers"]] = replace(
            base,
            data=f"@{arm.layers_on}",
            teacher=base.student,
            objective=(arm.layers,),
            epochs=arguments.layers_epochs / size[arm.layers_on],
            learning_rate=arguments.layers_learning_rate,
        )
        spans = replace(base, student=f"@{names['layers']}/model", student_layers=None)
    elif arm.longer:
        epochs += arguments.layers_epochs
    epochs /= size[arm.spans_on]
    stages[names["spans"]] = replace(spans, data=f"@{arm.spans_on}", objective=(arm.spans,), epochs=epochs)
    return stages


def _data(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Write training and calibration data, which share no article, and describe them."""
    paragraphs = squad.read_squad(arguments.train)
    mixed = dict.fromkeys(p.title for p in paragraphs if any(q.is_impossible for q in p.questions))
    if absent := set(arguments.hold_out) - set(mixed):
        raise InputError(f"{arguments.train}: no article with unanswerable questions is called {min(absent)}")
    held_out = arguments.hold_out or list(mixed)[1::HELD_OUT_EVERY]
    if not held_out:
        raise InputError(
            f"{arguments.train}: {len(mixed)} of its articles hold unanswerable questions; give data with at "
            "least 2, since one is held out"
        )
    train = evenly([p for p in paragraphs if p.title not in held_out], arguments.paragraphs)
    calibration = evenly([p for p in paragraphs if p.title in held_out], CALIBRATION_PARAGRAPHS)
    questions = {"dev": len(measure.questions_of(arguments.dev))}
    for name, part in (("train", train), ("calibration", calibration)):
        squad.write_json(part, str(work / f"{name}.json"))
        questions[name] = sum(len(paragraph.questions) for paragraph in part)
    return {"paragraphs": len(train), "questions": questions, "calibration_articles": held_out}


def _minutes(recipe: Recipe, work: Path, questions: dict[str, int], copies: int) -> float:
    """What the unfinished stages may take; a question is about one window."""
    seconds = 0.0
    sizes = {"@augmented": 1 + copies, "@augmented-windows": 1 + copies}
    for name, config in recipe.stages:
        match config:
            case _ if stage_folder.is_finished(str(work / name)):
                pass
            case DistillConfig(data=data, objective=(objective, *_)):
                speed = WINDOWS_PER_S[objective] * (1.4 if config.precision == "bf16" else 1.0)
                seconds += START_S + questions["train"] * sizes.get(data, 1) * config.epochs / speed
            case TeacherLogitsConfig(data=data, teachers=(_, *_)):
                seconds += questions["train"] * sizes.get(data, 1) / TEACHER_WINDOWS_PER_S
            case EvaluateConfig():
                seconds += (questions["dev"] + questions["calibration"]) / QUESTIONS_PER_S
    return seconds / 60


def _measured(work: Path, evaluations: Sequence[str], reports: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each figure, in percent."""
    values = {
        name: [getattr(reports[evaluation], name) for evaluation in evaluations]
        for name in FIGURES
        if name != "best_f1"
    }
    files = [storage.read_json(str(work / evaluation / "metrics.json")) for evaluation in evaluations]
    values["best_f1"] = [file["official"]["best_f1"] for file in files]
    figures = {
        name: {"mean": round(fmean(each), 2), "std": round(stdev(each), 2) if len(each) > 1 else None}
        for name, each in values.items()
    }
    return {"parameters": reports[evaluations[0]].parameters, **figures}


def _gains(arguments: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    """Points of forced F1 that one arm has over another, and their standard error.

    Both answer the same questions: the error is that of the mean of the differences over these.
    """
    gold = measure.gold(measure.questions_of(arguments.dev))
    f1: dict[str, NDArray[np.float64]] = {}
    for name in arguments.arms:
        folders = [work / f"{name}-{seed}-evaluation" for seed in arguments.seeds]
        predictions = [storage.read_json(str(folder / "predictions.json")) for folder in folders]
        scored = [squad_metrics.per_question(gold, each) for each in predictions]
        f1[name] = 100 * np.mean([each.f1[each.has_answer] for each in scored], axis=0)
    gains = {}
    for pair in COMPARED:
        arm, other = pair.split(" over ")
        if arm in f1 and other in f1:
            difference = f1[arm] - f1[other]
            error = difference.std(ddof=1) / sqrt(len(difference))
            points = {"points": difference.mean(), "standard_error": error}
            gains[pair] = {key: round(float(value), 2) for key, value in points.items()}
    return gains


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title="SQuAD 2.0 dev, percent, mean ± deviation over seeds", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("windows", *FIGURES.values()):
        table.add_column(heading, justify="right")
    teacher = {"windows_seen": {}, **figures["teacher"]}
    for name, row in {"teacher": teacher, **figures["arms"]}.items():
        seen = " + ".join(map(str, row["windows_seen"].values()))
        values = [row[figure] for figure in FIGURES]
        cells = [f"{v['mean']:.1f}" + ("" if v["std"] is None else f"±{v['std']:.1f}") for v in values]
        table.add_row(name, seen, *cells)
    abstain = f"{figures['always_abstain']:.1f}"
    table.add_row("abstain", "", abstain, abstain, "0.0", "100.0", "", abstain)
    gains = figures["forced_f1_gains"].items()
    lines = [f"{name}: {arm['about']}" for name, arm in figures["arms"].items()]
    lines += [
        f"{pair}: {gain['points']:+.1f} ± {gain['standard_error']:.1f} forced F1" for pair, gain in gains
    ]
    lines += [f"{who}: {speed} questions/s" for who, speed in figures["questions_per_s"].items()]
    table.caption, table.caption_justify = "\n".join(lines), "left"
    return table


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--train", default=asset("squad2_train.json"), help="SQuAD JSON (bundled excerpt)")
    add("--dev", default=asset("squad2_dev.json"), help="SQuAD JSON to measure on (bundled excerpt)")
    add("--teacher", default=MODEL, help=f"folder or hub id ({MODEL})")
    add("--logits-of", help="an export of the teacher, which reads its logits faster (the teacher)")
    add("--hold-out", nargs="+", default=[], help="articles that fit thresholds, by title (every fourth)")
    add("--work", default="runs/benchmarks/distillation", help="folder of all stages")
    add("--arms", nargs="+", choices=[*ARMS], default=["a", "a+", "b", "c", "d", "e"], help="(a a+ b c d e)")
    add("--seeds", nargs="+", type=int, default=[1], help="(1)")
    add("--paragraphs", type=int, default=200, help="most paragraphs to learn from, evenly chosen (200)")
    add("--copies", type=int, default=2, help="of each paragraph, for d (2)")
    add("--epochs", type=float, default=2.0, help="passes of labels or prediction (2)")
    add("--layers-epochs", type=float, default=1.0, help="passes of the layers stage (1)")
    add("--batch-size", type=int, default=8, help="windows a step (8)")
    add("--learning-rate", type=float, default=3e-4, help="of labels and prediction (3e-4)")
    add("--layers-learning-rate", type=float, default=5e-4, help="of the layers stage (5e-4)")
    add("--precision", choices=get_args(Precision), default="auto", help="of training (auto)")
    add("--gpu", action="store_true", help="teacher and training on one GPU")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"distillation: {error}")
