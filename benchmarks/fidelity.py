"""What the recipes' choices cost or bring beside Haystack 1's, each alone, over several seeds.

python benchmarks/fidelity.py --work FOLDER --save

A student of every second layer of the package's model learns that model's layers on augmented copies, then
its predictions on the originals, as in the recipes but far smaller. Every arm differs from the recipes in one
choice and is taught in turn for each seed; gains are those of the recipes' choice over the other one, on the
same seed. Beside F1 stands the distance to the teacher on questions that nothing is learned from, the KL
divergence of start and end: it says more than F1 does over so few questions.

Everything made is kept under --work: a run that was cut, or that stopped because of --minutes, goes on when
called again with the same options.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, show
from numpy.typing import NDArray

from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.augment.work import neighbours_of
from tinyqa_ray.configs import AugmentConfig, DistillConfig, TeacherLogitsConfig
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.datasets import squad
from tinyqa_ray.distill import loop
from tinyqa_ray.distill.session import LocalSession
from tinyqa_ray.distill.students import evenly_spaced_layers
from tinyqa_ray.evaluate import measure
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader import Reader
from tinyqa_ray.teacher_logits import TeacherLogitsReport
from tinyqa_ray.teacher_logits.window_dataset import FOLDER
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

RESULTS = Path(__file__).parent / "results" / "fidelity.json"
BATCH_SIZE = 16
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """The recipes' choices, of which an arm changes one."""

    attention_maps: Literal["scores", "probabilities"] = "scores"
    candidates: int = 20
    head_dropout: float = 0.1


RECIPES = "as the recipes"
ARMS = {
    RECIPES: Arm(),
    "attention after softmax": Arm(attention_maps="probabilities"),
    "15 candidates": Arm(candidates=15),
    "no dropout before the head": Arm(head_dropout=0.0),
}


def main() -> None:
    """Teach all arms for each seed, print what each choice brings, and perhaps keep the figures."""
    arguments = _arguments()
    began = time.perf_counter()
    model = bundled.asset(bundled.MODEL)
    train = bundled.asset("squad2_train.json")
    work = Path(arguments.work).expanduser().absolute()
    work.mkdir(parents=True, exist_ok=True)
    paragraphs = squad.to_table(squad.read_squad(train))
    reads = TeacherLogitsConfig(data=train, teachers=(model,), threads=arguments.threads)
    originals = _windows(reads, lambda: paragraphs, work / "originals")
    copies = {}
    for count in sorted({arm.candidates for arm in ARMS.values()}):
        config = AugmentConfig(data=train, embeddings=model, copies=arguments.copies, candidates=count)
        cuts = TeacherLogitsConfig(data=train, tokenizer=model)
        make = partial(_augmented, config, paragraphs, work / f"neighbours-{count}")
        copies[count] = _windows(cuts, make, work / f"copies-{count}")
    judge = Judge(model)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    done: list[int] = []
    for seed in arguments.seeds:
        found: dict[str, dict[str, float]] = {}
        for name, arm in ARMS.items():
            if time.perf_counter() - began > 60 * arguments.minutes:
                break
            place = work / f"{seed}-{name}".replace(" ", "-")
            student = _taught(arm, seed, model, copies[arm.candidates], originals, place, arguments)
            found[name] = judge(student)
        if len(found) < len(ARMS):
            print(f"fidelity: no time was left for seed {seed}; call it again to go on", file=sys.stderr)
            break
        done.append(seed)
        for name in ARMS:
            runs[name].append(found[name])
    if not done:
        sys.exit(1)
    figures = {
        "threads": arguments.threads,
        "steps_of_each_stage": arguments.steps,
        "batch_size": BATCH_SIZE,
        "copies": arguments.copies,
        "seeds": done,
        "arms": {
            name: {key: _spread([run[key] for run in of]) for key in of[0]} for name, of in runs.items()
        },
        "gain_of_the_recipes_over": {
            name: {
                key: _spread([mine[key] - its[key] for mine, its in zip(runs[RECIPES], of, strict=True)])
                for key in of[0]
            }
            for name, of in runs.items()
            if name != RECIPES
        },
    }
    if arguments.save:
        storage.write_json(str(RESULTS), {"benchmark": "fidelity", **figures, "machine": machine()})
    show("fidelity", figures)


class Judge:
    """Measures students on the excerpt of SQuAD 2.0's dev set, beside a teacher that reads it once."""

    def __init__(self, teacher: str) -> None:
        self._asked = measure.questions_of(bundled.asset("squad2_dev.json"))
        self._teacher = self._logits(Reader.from_pretrained(teacher, device="cpu", precision="fp32"))

    def __call__(self, student: str) -> dict[str, float]:
        """Forced F1, and the mean over the windows of the KL divergence from the teacher."""
        reader = Reader.from_pretrained(student, device="cpu", precision="fp32")
        readings, _ = measure.read(reader, self._asked, MAX_ANSWER_TOKENS)
        forced_f1 = measure.Scored.of(self._asked, readings).summary(1.0).forced_f1
        assert forced_f1 is not None
        sides = zip(self._teacher, self._logits(reader), strict=True)
        distances = [
            sum(_divergence(*pair) for pair in zip(its, mine, strict=True)) / len(its) for its, mine in sides
        ]
        return {"forced_f1": forced_f1, "kl_to_teacher": sum(distances)}

    def _logits(self, reader: Reader) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
        windows = reader.windower.windows([(each.question.question, each.context) for each in self._asked])
        return reader.engine.logits(windows)


def _augmented(config: AugmentConfig, paragraphs: pa.Table, neighbours: Path) -> pa.Table:
    """Paragraphs and their copies."""
    pq.write_table(neighbours_of(config).to_table(), neighbours)
    return Augmenter(config, str(neighbours))(paragraphs)[0]


def _windows(config: TeacherLogitsConfig, paragraphs: Callable[[], pa.Table], output: Path) -> str:
    """The folder of a teacher-logits stage over a table of paragraphs, made in this process."""
    with stage_folder.stage(str(output), config) as stage:
        if stage.finished:
            return str(output)
        made, counts = WindowWriter(config)(paragraphs())
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
        storage.write_atomic(stage.path(FOLDER, "part-000000.arrow"), sink.getvalue().to_pybytes())
        whole: dict[str, Any] = {name: int(value) for name, value in counts.items()}
        stage.publish(TeacherLogitsReport(**whole))
    return str(output)


def _taught(
    arm: Arm, seed: int, model: str, copies: str, originals: str, place: Path, arguments: argparse.Namespace
) -> str:
    """The folder of a student that went through both stages."""
    depth = int(pretrained.load_config(model).num_hidden_layers)
    shared: dict[str, Any] = {
        "batch_size": BATCH_SIZE,
        "warmup_ratio": 0.2,
        "attention_dropout": 0.0,
        "seed": seed,
        "threads": arguments.threads,
        "checkpoint_steps": 1_000_000,
    }
    layers = DistillConfig(
        data=copies,
        student=model,
        student_layers=evenly_spaced_layers(depth, depth // 2),
        teacher=model,
        objective=("intermediate",),
        attention_maps=arm.attention_maps,
        epochs=_epochs(copies, arguments.steps),
        learning_rate=5e-4,
        **shared,
    )
    spans = DistillConfig(
        data=originals,
        student=_trained(layers, place / "intermediate"),
        objective=("prediction",),
        distillation_weight=0.75,
        temperature=1.5,
        head_dropout=arm.head_dropout,
        epochs=_epochs(originals, arguments.steps),
        learning_rate=3e-4,
        **shared,
    )
    return _trained(spans, place / "prediction")


def _trained(config: DistillConfig, folder: Path) -> str:
    loop.train(config, LocalSession(folder))
    return str(next(folder.glob("step-*")) / loop.MODEL)


def _epochs(windows: str, steps: int) -> float:
    """Epochs of a number of steps: half a step less, since epochs are rounded up to whole steps."""
    count = int(storage.read_json(storage.join(windows, "_SUCCESS.json"))["report"]["windows"])
    return (steps - 0.5) * BATCH_SIZE / count


def _divergence(teacher: NDArray[np.float32], student: NDArray[np.float32]) -> float:
    """KL(teacher ‖ student) over the tokens of a window."""
    p, q = (each.astype(np.float64) - each.max() for each in (teacher, student))
    p, q = (each - np.log(np.exp(each).sum()) for each in (p, q))
    return float((np.exp(p) * (p - q)).sum())


def _spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over the seeds; of one seed, the value."""
    several = {"stdev": round(stdev(values), 3)} if len(values) > 1 else {}
    return {"mean": round(fmean(values), 3), **several}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[1, 2, 3], help="a run of every arm for each (1 2 3)")
    add("--steps", type=int, default=40, help="of each of the two stages (40)")
    add("--copies", type=int, default=2, help="of each paragraph (2)")
    add("--threads", type=int, default=2, help="of torch (2)")
    add("--work", default="runs/benchmarks/fidelity", help="folder that keeps what is made")
    add("--minutes", type=float, default=8.0, help="no student is begun later (8)")
    add("--save", action="store_true", help=f"write {RESULTS.name} into benchmarks/results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
