"""What the shell shows: progress while stages run, and the summary of a quickstart."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from tinyqa_ray.answer import FOLDER as ANSWERS
from tinyqa_ray.answer import AnswerReport
from tinyqa_ray.augment import AugmentReport
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import sources
from tinyqa_ray.distill import DistillReport
from tinyqa_ray.evaluate import EvaluateReport
from tinyqa_ray.export import ExportReport
from tinyqa_ray.gather import GatherReport
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.recipes.run import StageReport, StageResult
from tinyqa_ray.teacher_logits import TeacherLogitsReport

_SHOWN = 5
"""Questions shown at the end of a quickstart."""


@contextlib.contextmanager
def native_noise_in_a_file() -> Iterator[Path]:
    """Send what Ray's C++ parts write to the terminal's error stream into a log file; Python's own stays.

    The file is left behind only by what fails, when there is something in it.
    """
    sys.stderr.flush()
    file, name = tempfile.mkstemp(prefix="tinyqa-", suffix=".log")
    log = Path(name)
    terminal = os.dup(2)
    python_stderr = sys.stderr
    os.dup2(file, 2)
    os.close(file)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1)
    ended_well = False
    try:
        yield log
        ended_well = True
    except InputError:
        ended_well = True
        raise
    finally:
        if ended_well or not log.stat().st_size:
            log.unlink(missing_ok=True)
        sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)


def run_stage(unit: str, stage: Callable[..., Any], config: Any, output: str) -> dict[str, Any]:
    """Run one stage with a progress bar of ``unit``; returns its report as plain values."""
    with native_noise_in_a_file(), StageProgress(Console(stderr=True)) as bars:
        return asdict(stage(config, output, bars.starting(unit)))


def run_recipe(recipe: Recipe, output: str, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """Run the chosen stages of a recipe with a progress bar each; returns their reports as plain values."""
    with StageProgress(Console(stderr=True)) as bars:
        results = run.run(recipe, output, bars.starting, bars.done, chosen)
    return [
        {
            "stage": each.name,
            "output": each.output,
            "was_finished": each.was_finished,
            "seconds": each.seconds,
            **asdict(each.report),
        }
        for each in results
    ]


def run_quickstart(recipe: Recipe, output: str) -> None:
    """Run every stage of the quickstart, and print its summary."""
    terminal = Console()
    with native_noise_in_a_file(), StageProgress(terminal) as bars:
        results = run.run(recipe, output, bars.starting, bars.done)
    terminal.print(quickstart_summary(results, output, plain=not terminal.is_terminal))


class StageProgress:
    """A progress bar a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> StageProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def starting(self, name: str) -> Any:
        """Begin a stage's bar; returns what its progress, and a note on how it goes, are told to."""
        task = self._bars.add_task(name, total=None, note="")
        return lambda done, total, note="": self._bars.update(task, completed=done, total=total, note=note)

    def done(self, result: StageResult) -> None:
        """End the stage's bar with a line that stays."""
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        if result.was_finished:
            self._console.print(f"[dim]✓ {result.name}: was finished[/]")
        else:
            self._console.print(f"✓ {result.name}: {rows(result.report)} in {result.seconds:.0f} s")


def rows(report: StageReport) -> str:
    """What a stage made, in a few words."""
    match report:
        case GatherReport():
            return f"{report.paragraphs} paragraphs, {report.questions} questions"
        case AugmentReport():
            share = report.words_replaced / max(report.words, 1)
            return f"{report.copies} paragraphs of {report.paragraphs}, {share:.0%} of words replaced"
        case TeacherLogitsReport():
            return f"{report.windows} windows of {report.questions} questions"
        case DistillReport():
            return f"{report.steps} steps over {report.windows} windows, loss {report.loss:.3f}"
        case EvaluateReport():
            return f"{report.questions} questions, EM {report.exact:.1f}, F1 {report.f1:.1f}"
        case ExportReport():
            return f"{report.precision}, {report.megabytes} MB"
        case AnswerReport():
            return f"{report.answered} of {report.questions} questions answered"


def quickstart_summary(results: Sequence[StageResult], output: str, *, plain: bool) -> Group:
    """The tables and examples that end a quickstart."""
    by_name = {result.name: result for result in results}
    return Group(
        "",
        _stages(results),
        "",
        _comparison(by_name),
        "",
        *_examples(by_name["answers"].output, _documents(by_name["answers"]), plain),
        "",
        _places(by_name, output),
    )


def _stages(results: Sequence[StageResult]) -> Table:
    table = Table(title="Stages", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("stage", "left"), ("made", "left"), ("seconds", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for result in results:
        seconds = "finished before" if result.was_finished else f"{result.seconds:.1f}"
        table.add_row(result.name, rows(result.report), seconds)
    return table


def _comparison(by_name: dict[str, StageResult]) -> Table:
    """Teacher and student side by side, with what abstaining would score."""
    table = Table(title="SQuAD 2.0, bundled dev excerpt", title_justify="left", box=None, pad_edge=False)
    headings = ("", "EM", "F1", "HasAns", "NoAns", "forced F1", "params", "size", "questions/s")
    for name in headings:
        table.add_column(name, justify="left" if not name else "right")
    for who in ("teacher", "student"):
        result = by_name[f"{who}-evaluation"]
        report = result.report
        assert isinstance(report, EvaluateReport)
        figures = (report.exact, report.f1, report.has_ans_f1, report.no_ans_f1, report.forced_f1)
        table.add_row(
            who,
            *("–" if value is None else f"{value:.1f}" for value in figures),
            f"{report.parameters / 1e6:.1f} M",
            f"{pretrained.model_bytes(bundled.located(_model(result))) / 1e6:.0f} MB",
            f"{report.questions_per_s:.1f}",
        )
    teacher = by_name["teacher-evaluation"].report
    assert isinstance(teacher, EvaluateReport)
    abstain = f"{teacher.always_abstain:.1f}"
    table.add_row("always abstain", abstain, abstain, "0.0", "100.0")
    return table


def _model(evaluation: StageResult) -> str:
    """The model that an evaluation measured."""
    return str(storage.read_json(storage.join(evaluation.output, stage_folder.SUCCESS))["config"]["model"])


def _documents(result: StageResult) -> dict[str, str]:
    """Texts by document id, from what the stage has read."""
    path = storage.read_json(storage.join(result.output, stage_folder.SUCCESS))["config"]["documents"]
    rows = (values for source in sources.find(path) for _, values in source.rows())
    return {values["id"]: values["text"] for values in rows}


def _examples(output: str, documents: dict[str, str], plain: bool) -> list[Panel]:
    """The surest answers, one a document, each marked in its passage: by colour, or by »«."""
    import pyarrow.dataset as pads

    answers = pads.dataset(str(Path(output) / ANSWERS)).to_table().to_pylist()
    given = sorted((row for row in answers if row["answer"] is not None), key=lambda row: -row["score"])
    best: dict[str, Any] = {}
    for row in given:
        best.setdefault(row["document_id"], row)
    panels = []
    for row in list(best.values())[:_SHOWN]:
        text = Text(documents[row["document_id"]])
        text.stylize("bold black on yellow", row["start"], row["end"])
        if plain:
            text = Text.assemble(
                text[: row["start"]], "»", text[row["start"] : row["end"]], "«", text[row["end"] :]
            )
        question = Text(f"{row['question']}\n→ {row['answer']} (score {row['score']:.2f})\n", style="bold")
        panels.append(Panel(Group(question, text), border_style="dim"))
    return panels


def _ask_command(by_name: dict[str, StageResult]) -> str:
    settings = by_name["student-evaluation"].output
    return (
        f'tinyqa ask --model {by_name["student"].output}/model --settings {settings} "Who …?" --context "…"'
    )


def _places(by_name: dict[str, StageResult], output: str) -> Table:
    table = Table(title="Where it lies", title_justify="left", box=None, pad_edge=False, show_header=False)
    for what, path in (
        ("student", _model(by_name["student-evaluation"])),
        ("its report", f"{by_name['student-evaluation'].output}/report.html"),
        ("teacher", bundled.located(_model(by_name["teacher-evaluation"]))),
        ("its report", f"{by_name['teacher-evaluation'].output}/report.html"),
        ("answers", f"{by_name['answers'].output}/{ANSWERS}"),
        ("everything", output),
    ):
        table.add_row(what, path)
    table.add_row("ask it", _ask_command(by_name))
    return table
