"""The page of a training run: its curves, and its student beside teacher and baseline."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tinyqa_ray.core import html
from tinyqa_ray.distill.trackers import dev_values, training_values

FIGURES = (
    ("exact", "EM"),
    ("f1", "F1"),
    ("has_ans_f1", "HasAns F1"),
    ("no_ans_f1", "NoAns"),
    ("forced_f1", "Forced F1"),
    ("best_f1", "Best F1"),
)
"""Keys and names of a model's figures on dev, in percent."""
FIGURES_EXPLAINED = (
    "In percent. EM and F1 count all questions, at the model's no-answer threshold; HasAns those with an "
    "answer, NoAns those without. Forced F1: questions with an answer, when the model must answer. Best F1: "
    "at the threshold that is best on these very questions, so it flatters. F1 kept: share of the "
    "best teacher's F1."
)
_CAPTIONS = {
    "loss/total": "What each step lowers: the weighted sum of all terms.",
    "loss/label": "Cross-entropy of the gold spans.",
    "loss/prediction": "Distance of the student's span logits from the teacher's.",
    "loss/attention": "Distance of the student's attention from the teacher's.",
    "loss/hidden": "Distance of the student's hidden states from the teacher's.",
    "loss/query": "Distance of the relations among queries from the teacher's.",
    "loss/key": "Distance of the relations among keys from the teacher's.",
    "loss/value": "Distance of the relations among values from the teacher's.",
    "optimiser/learning_rate": "It rises in the warm-up and then falls to 0.",
    "optimiser/grad_norm": "Before clipping to max_grad_norm; steps that fp16 skips have none.",
    "optimiser/loss_scale": "For fp16: halved when gradients overflow, doubled after many steps without.",
    "speed/tokens_per_s": "All workers together, without padding; a dip is a checkpoint or a busy machine.",
}
_EXACT = ("optimiser/learning_rate", "optimiser/loss_scale")
_POINTS = 400
"""Lines of more points than this are thinned; they would have more points than pixels."""
_FEW = 12
"""Lines of fewer points than this have each point marked."""
_SMOOTHED = 25
"""The smoothed line averages over a span of the number of rows divided by this."""
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values, (n,) each, steps ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFigures:
    """Figures of a model on dev: one row of the table of models."""

    name: str
    figures: Mapping[str, float | None]
    """By the keys of `FIGURES`, in percent; None or absent where not measured."""
    parameters: int | None
    role: Literal["student", "teacher", "baseline"] = "student"
    """The F1 of every model is compared with that of the best teacher."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPage:
    """All that `training_html` shows."""

    title: str
    facts: tuple[tuple[str, str], ...]
    """(name, value): the config, the data, hardware, versions."""
    rows: Sequence[Mapping[str, float]]
    """Rows of ``metrics.jsonl``; if a step has two, the later counts."""
    dev: Sequence[Mapping[str, float | None]] = ()
    """Figures of the checkpoints measured on dev, in any order."""
    models: Sequence[ModelFigures] = ()
    """Models to compare, the student first."""


def training_html(page: TrainingPage) -> str:
    """Return the whole page as one self-contained HTML document, the same text for the same input."""
    training = _curves((row["step"], training_values(row)) for row in page.rows)
    dev = _curves((row["step"], dev_values(row)) for row in page.dev)
    with html.plot_style():
        plots = [*_training_plots(training), *_dev_plots(dev, page.models)]
    parts = [html.cards(_cards(page, training))]
    if page.models:
        header, *rows = comparison(page.models)
        note = f'<p class="muted">{FIGURES_EXPLAINED}</p>'
        table = f'<div style="white-space: nowrap">{html.table(rows, header)}</div>'
        parts.append(f"<h2>Models on dev</h2>\n{table}\n{note}")
    if plots:
        drawn = "\n".join(plots)
        parts.append(f'<h2>Curves</h2>\n<div class="plots">\n{drawn}\n</div>')
    parts.append(f"<h2>Setup</h2>\n{html.table(page.facts)}")
    return html.page(page.title, "\n".join(parts))


def comparison(models: Sequence[ModelFigures]) -> list[list[str]]:
    """Return the table of models, its header first.

    Figures that no model has are left out. "F1 kept" is the share of the best teacher's F1.
    """
    shown = [(key, name) for key, name in FIGURES if any(known(m.figures.get(key)) for m in models)]
    best = teacher_f1(models)
    table = [["Model", *(name for _, name in shown), *(["F1 kept"] if best else []), "Parameters"]]
    for model in models:
        row = [model.name, *(percent(model.figures.get(key)) for key, _ in shown)]
        if best:
            kept = percent(share_kept(model, best))
            row.append(kept if kept == "–" else f"{kept} %")
        table.append([*row, "–" if model.parameters is None else f"{model.parameters:,}"])
    return table


def teacher_f1(models: Iterable[ModelFigures]) -> float | None:
    """F1 of the best teacher; None where no teacher has any above 0."""
    found = (model.figures.get("f1") for model in models if model.role == "teacher")
    return max((f1 for f1 in found if known(f1) and f1 > 0), default=None)


def share_kept(model: ModelFigures, best: float) -> float | None:
    """F1 of ``model`` in percent of a teacher's F1."""
    f1 = model.figures.get("f1")
    return None if f1 is None else 100 * f1 / best


def known(value: float | None) -> TypeGuard[float]:
    """Whether a figure is a number that may be shown."""
    return value is not None and isfinite(value)


def percent(value: float | None) -> str:
    """A figure as a cell of a table; a dash where there is none."""
    return f"{value:.1f}" if known(value) else "–"


def _curves(rows: Iterable[tuple[float | None, Mapping[str, float]]]) -> dict[str, Curve]:
    """Points by name; names in the order in which they first appear."""
    points: dict[str, dict[int, float]] = {}
    for step, values in rows:
        assert step is not None
        for name, value in values.items():
            points.setdefault(name, {})[int(step)] = value
    return {
        name: (np.array(sorted(found), dtype=np.int64), np.array([found[s] for s in sorted(found)]))
        for name, found in points.items()
    }


def _cards(page: TrainingPage, training: Mapping[str, Curve]) -> list[tuple[str, str, str]]:
    found = []
    if page.rows:
        last = page.rows[-1]
        found.append(("Steps", f"{last['step']:,.0f}", f"of {last['steps']:,.0f}"))
    if "loss/total" in training:
        values = training["loss/total"][1]
        found.append(("Loss", f"{values[-1]:.4g}", f"at the last step logged; {values[0]:.4g} at the first"))
    if "speed/tokens_per_s" in training:
        speed = float(np.median(training["speed/tokens_per_s"][1]))
        found.append(("Speed", f"{speed:,.0f}", "tokens/s, median of all rows"))
    student = next((model for model in page.models if model.role == "student"), None)
    if student is not None and known(student.figures.get("f1")):
        found.append(("F1 on dev", percent(student.figures["f1"]), f"{student.name}, in percent"))
        if best := teacher_f1(page.models):
            kept = percent(share_kept(student, best))
            found.append(("F1 kept", f"{kept} %", f"of the best teacher's {percent(best)}"))
    return found


def _training_plots(curves: Mapping[str, Curve]) -> list[str]:
    losses = [name for name in curves if name.startswith("loss/")]
    if len(losses) == 2:  # a total of one term is that term
        losses = [name for name in losses if name != "loss/total"]
    others = [name for name in _CAPTIONS if name in curves and not name.startswith("loss/")]
    return [_training_plot(name, curves[name]) for name in (*losses, *others)]


def smoothed(values: NDArray[np.float64], span: int) -> NDArray[np.float64]:
    """Moving average of (n,) values over ``span`` of them (an odd number), centred so that it does not lag.

    Near the ends it averages over fewer values.
    """
    place = np.arange(len(values))
    first, last = np.maximum(place - span // 2, 0), np.minimum(place + span // 2 + 1, len(values))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    means: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return means


def thinned(steps: NDArray[np.int64], values: NDArray[np.float64], points: int) -> Curve:
    """At most about ``points`` of the (n,) points, with the extremes of every stretch among them."""
    if len(values) <= points:
        return steps, values
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), points // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    chosen = sorted(kept)
    return steps[chosen], values[chosen]


def _training_plot(name: str, curve: Curve) -> str:
    kind, _, label = name.partition("/")
    label = label.replace("_per_s", "/s").replace("_", " ").capitalize()
    label += " loss" if kind == "loss" else ""
    figure, axes = _axes(label)
    steps, values = curve
    span = 1 if name in _EXACT else len(values) // _SMOOTHED | 1
    caption = _CAPTIONS.get(name, "A weighted term of the loss.")
    if span > 3:
        axes.plot(*thinned(steps, values, _POINTS), color=html.BLUE, alpha=0.3, linewidth=1.0)
        values = smoothed(values, span)
        caption += f" Faint: as logged; strong: averaged over {span} rows."
    axes.plot(*thinned(steps, values, _POINTS), color=html.BLUE, marker="o" if len(values) < _FEW else "")
    return html.captioned(html.figure_svg(figure, f"{label} over steps"), caption)


def _dev_plots(curves: Mapping[str, Curve], models: Sequence[ModelFigures]) -> list[str]:
    others = {f"F1 of {model.name}": model.figures.get("f1") for model in models if model.role != "student"}
    levels = {label: level for label, level in others.items() if known(level)}
    plots: tuple[tuple[tuple[str, ...], dict[str, float], str], ...] = (
        (("f1", "exact", "best_f1"), levels, "All dev questions, a point for each checkpoint measured."),
        (
            ("has_ans_f1", "no_ans_f1", "forced_f1"),
            {},
            "Dev questions with an answer (HasAns, and forced to answer) and without one (NoAns).",
        ),
    )
    return [_dev_plot(curves, *plot) for plot in plots if any(f"dev/{key}" in curves for key in plot[0])]


def _dev_plot(
    curves: Mapping[str, Curve], keys: Sequence[str], levels: Mapping[str, float], caption: str
) -> str:
    figure, axes = _axes("Percent")
    names = dict(FIGURES)
    for key, color in zip(keys, (html.BLUE, html.ORANGE, html.GREEN), strict=True):
        if f"dev/{key}" in curves:
            axes.plot(*curves[f"dev/{key}"], color=color, marker="o", markersize=4.0, label=names[key])
    for (label, level), style in zip(levels.items(), itertools.cycle(("--", ":", "-.")), strict=False):
        axes.axhline(level, color=html.MUTED, linewidth=1.2, linestyle=style, label=label)
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.6, borderaxespad=0.2)
    label = f"{', '.join(names[key] for key in keys)} on dev over steps"
    return html.captioned(html.figure_svg(figure, label), caption)


def _axes(label: str) -> tuple[Figure, Axes]:
    figure = Figure()
    axes = figure.add_subplot()
    axes.set_xlabel("Optimiser step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    return figure, axes
