"""What stages made, in a few words each, and the tables and examples that end a quickstart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tinyqa_ray.answer import FOLDER as ANSWERS
from tinyqa_ray.answer import AnswerReport
from tinyqa_ray.augment import AugmentReport
from tinyqa_ray.core import bundled, stage_folder, storage
from tinyqa_ray.corpus import sources
from tinyqa_ray.distill import DistillReport
from tinyqa_ray.evaluate import EvaluateReport
from tinyqa_ray.export import ExportReport
from tinyqa_ray.gather import GatherReport
from tinyqa_ray.models import pretrained
from tinyqa_ray.recipes.run import StageReport, StageResult
from tinyqa_ray.teacher_logits import TeacherLogitsReport

_SHOWN = 5
"""Questions shown at the end of a quickstart."""


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


def quickstart(results: Sequence[StageResult], output: str, *, plain: bool) -> Group:
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
    """Teacher and student side by side, and the score of always abstaining."""
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
    """Texts by document id, from the documents that the stage has read."""
    path = storage.read_json(storage.join(result.output, stage_folder.SUCCESS))["config"]["documents"]
    rows = (values for source in sources.find(path) for _, values in source.rows())
    return {values["id"]: values["text"] for values in rows}


def _examples(output: str, documents: dict[str, str], plain: bool) -> list[Panel]:
    """The surest answers, one per document, each marked in its text: by colour or, if ``plain``, by »«."""
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
