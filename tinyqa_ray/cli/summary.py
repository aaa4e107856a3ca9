"""What stages made, in a few words each, and what a quickstart shows of it at its end."""

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
            loss = "" if report.loss is None else f", loss {report.loss:.3f}"
            return f"{report.steps} steps over {report.windows} windows{loss}"
        case EvaluateReport():
            return f"{report.questions} questions, EM {report.exact:.1f}, F1 {report.f1:.1f}"
        case ExportReport():
            return f"{report.precision}, {report.megabytes} MB"
        case AnswerReport():
            return f"{report.answered} of {report.questions} questions answered"


def quickstart(results: Sequence[StageResult], *, plain: bool) -> Group:
    """One table and two answers of the student, for the end of a quickstart."""
    by_name = {result.name: result for result in results}
    return Group(
        "",
        _comparison(by_name),
        "",
        *examples(by_name["answers"], shown=2, plain=plain),
        "",
    )


def examples(answers: StageResult, *, shown: int, plain: bool) -> list[Panel]:
    """The surest answers, one per document, each marked in its text: by colour or, if ``plain``, by »«."""
    import pyarrow.dataset as pads

    documents = _documents(answers)
    found = pads.dataset(str(Path(answers.output) / ANSWERS)).to_table().to_pylist()
    given = sorted((row for row in found if row["answer"] is not None), key=lambda row: -row["score"])
    best: dict[str, Any] = {}
    for row in given:
        best.setdefault(row["document_id"], row)
    panels = []
    for row in list(best.values())[:shown]:
        text = Text(documents[row["document_id"]])
        text.stylize("bold black on yellow", row["start"], row["end"])
        if plain:
            text = Text.assemble(
                text[: row["start"]], "»", text[row["start"] : row["end"]], "«", text[row["end"] :]
            )
        question = Text(f"{row['question']}\n→ {row['answer']} (score {row['score']:.2f})\n", style="bold")
        panels.append(Panel(Group(question, text), border_style="dim"))
    return panels


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


def commands(results: Sequence[StageResult]) -> Text:
    """Three commands to go on with after a quickstart; print their lines unwrapped, as they are copied."""
    by_name = {result.name: result for result in results}
    student, evaluation = by_name["student"].output, by_name["student-evaluation"].output
    model = f"--model {student}/model --settings {evaluation}"
    lines = [
        ("Ask the student", f'tinyqa ask {model} "Who …?" --context "…"'),
        ("Serve it, with a page to try", f"tinyqa serve {model}"),
        ("See what it gets wrong, in a browser", f"python -m http.server --directory {evaluation}"),
    ]
    said = Text("What to do next, after: source .venv/bin/activate", style="bold")
    for what, command in lines:
        said.append(f"\n{what}\n", style="not bold dim").append(f"  {command}", style="not bold not dim")
    return said
