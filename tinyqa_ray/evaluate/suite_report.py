"""What a run of suites reports, and where it is below what was asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyqa_ray.configs.gates import Gate
from tinyqa_ray.core.names import display_name

Row = dict[str, Any]
"""Figures of a model on a part of a suite, or, if ``part`` is None, the mean of its parts."""
FIGURES = (
    "exact",
    "f1",
    "has_ans_exact",
    "has_ans_f1",
    "no_ans_f1",
    "forced_exact",
    "forced_f1",
    "best_exact",
    "best_f1",
)
"""Figures in percent that a row has; None where the data has no such question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteReport:
    """One table for all models."""

    questions: int
    """Questions of all parts, each counted once."""
    rows: tuple[Row, ...]
    """``model``, ``suite``, ``part``, ``metrics`` (squad1 or squad2: which rule ``exact`` and ``f1`` follow),
    ``questions``, ``questions_per_s``, and ``FIGURES``; suites in order, and in each the models."""


def table(measured: Iterable[Row]) -> tuple[Row, ...]:
    """Rows of parts, with a row for each model and suite: the mean over its parts, as MRQA defines it."""
    by_suite: dict[str, dict[str, list[Row]]] = {}
    for row in measured:
        by_suite.setdefault(row["suite"], {}).setdefault(row["model"], []).append(row)
    made: list[Row] = []
    for models in by_suite.values():
        for rows in models.values():
            made += [*rows, _mean(rows)]
    return tuple(made)


def _mean(rows: Sequence[Row]) -> Row:
    kinds = {row["metrics"] for row in rows}
    questions = sum(row["questions"] for row in rows)
    return {
        "model": rows[0]["model"],
        "suite": rows[0]["suite"],
        "part": None,
        "metrics": kinds.pop() if len(kinds) == 1 else "mixed",
        "questions": questions,
        "questions_per_s": questions / sum(row["questions"] / row["questions_per_s"] for row in rows),
        **{name: _mean_of([row[name] for row in rows if row[name] is not None]) for name in FIGURES},
    }


def _mean_of(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def of_evaluation(report: Mapping[str, Any], model: str, data: str) -> Row:
    """The report of a plain evaluation, as the only row of a suite that is called as its data."""
    figures = {name: report[name] for name in FIGURES if name in report}
    return {"model": model, "suite": display_name(data), "part": None, **figures}


def shortfalls(gates: Sequence[Gate], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which figure of which model is below its gate, a few words for each; empty if none is.

    A gate without a name is for every suite as a whole, one with a name for the suite or part of that name.
    """
    said = []
    for gate in gates:
        meant = [row for row in rows if gate.where in (row["part"] or row["suite"], None)]
        if gate.where is None:
            meant = [row for row in meant if row["part"] is None]
        if not meant:
            said.append(f"there is no suite or part {gate.where!r} that {gate.figure} could be asked of")
        for row in meant:
            value, on = row[gate.figure], row["part"] or row["suite"]
            if value is None:
                said.append(f"{on} has no question for {gate.figure}")
            elif value < gate.least:
                # Written out where rounding would make a figure look as if it reached the gate.
                shown = f"{value:.2f}" if value < gate.least - 0.005 else f"{value!r}"
                model = display_name(row["model"])
                said.append(f"{gate.figure} of {model} on {on} is {shown}, below {gate.least:g}")
    return said
