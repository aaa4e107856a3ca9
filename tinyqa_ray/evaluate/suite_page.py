"""The page of a run of suites: one table for all models."""

from __future__ import annotations

from html import escape
from typing import Any

from tinyqa_ray.configs import SuiteConfig
from tinyqa_ray.core import html, version
from tinyqa_ray.core.names import display_name
from tinyqa_ray.evaluate.suite_report import Row, SuiteReport

_RULES = {
    "squad1": "The suite has an answer to every question, and the model must answer (SQuAD 1.1).",
    "squad2": "Questions may have no answer: the model abstains above its threshold (SQuAD 2.0).",
    "mixed": "Some parts have an answer to every question (SQuAD 1.1), others do not (SQuAD 2.0).",
}
_COLUMNS = (("exact", "EM"), ("f1", "F1"), ("has_ans_f1", "HasAns F1"), ("no_ans_f1", "NoAns"))
"""The last two are shown only where some question has no answer."""


def suites_html(config: SuiteConfig, report: SuiteReport) -> str:
    """The whole page: a table over all suites, then one for the parts of each, and how it was measured."""
    wholes = [row for row in report.rows if row["part"] is None]
    suites = list(dict.fromkeys(row["suite"] for row in wholes))
    parts = ["<h2>All suites</h2>", "<p>EM and F1 in percent.</p>", _overview(config, wholes, suites)]
    for suite in suites:
        rows = [row for row in report.rows if row["suite"] == suite]
        rule = _RULES[next(row["metrics"] for row in rows if row["part"] is None)]
        mean = "" if len({row["part"] for row in rows}) < 3 else " The last rows are the mean over the parts."
        parts += [f"<h2>{escape(suite)}</h2>", f"<p>{rule}{mean}</p>", _parts(rows)]
    facts = [
        *(("model", model) for model in config.models),
        ("questions", f"{report.questions:,}"),
        ("window", f"{config.window.max_seq_len} tokens, overlap {config.window.doc_stride}"),
        *version.versions().items(),
    ]
    parts += ["<h2>Setup</h2>", html.table(facts)]
    return html.page(
        f"{', '.join(map(display_name, config.models))} on {', '.join(suites)}", "\n".join(parts)
    )


def _overview(config: SuiteConfig, wholes: list[Row], suites: list[str]) -> str:
    """A row for each model, and EM / F1 for each suite."""
    by_place = {(row["model"], row["suite"]): row for row in wholes}
    body = []
    for model in config.models:
        cells = [by_place[model, suite] for suite in suites]
        figures = [f"{_percent(row['exact'])} / {_percent(row['f1'])}" for row in cells]
        body.append((display_name(model), *figures))
    return html.table(body, header=("model", *suites))


def _parts(rows: list[Row]) -> str:
    """A row for each part and model; where a suite is one part, its mean is left out."""
    names = list(dict.fromkeys(row["part"] for row in rows))
    shown = names if len(names) > 2 else names[:1]
    columns = _COLUMNS if any(row["no_ans_f1"] is not None for row in rows) else _COLUMNS[:2]
    body = [
        (
            name or "mean",
            display_name(row["model"]),
            f"{row['questions']:,}",
            *(_percent(row[key]) for key, _ in columns),
            f"{row['questions_per_s']:.1f}",
        )
        for name in shown
        for row in rows
        if row["part"] == name
    ]
    header = ("part", "model", "questions", *(title for _, title in columns), "questions/s")
    return html.table(body, header=header)


def _percent(value: Any) -> str:
    return "–" if value is None else f"{value:.1f}"
