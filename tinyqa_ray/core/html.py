"""Pieces of a self-contained HTML page: no scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from tinyqa_ray.core.errors import InputError

# Name: (light, dark). Plots are drawn in the light colours, which `figure_svg` turns into CSS variables.
_PALETTE = {
    "ink": ("#1c2430", "#e6e9ee"),
    "muted": ("#5b6573", "#a0a9b6"),
    "line": ("#d6dbe2", "#39414d"),
    "blue": ("#2166ac", "#74b3f0"),
    "orange": ("#c4560a", "#f5a05a"),
    "green": ("#1a7f4b", "#63cf95"),
    "red": ("#b42318", "#ff8a80"),
    "page": ("#ffffff", "#13171d"),
    "panel": ("#f6f8fa", "#1b2129"),
    "highlight": ("#ffe48f", "#6a5300"),
}
INK, MUTED, LINE = (_PALETTE[name][0] for name in ("ink", "muted", "line"))
BLUE, ORANGE, GREEN = (_PALETTE[name][0] for name in ("blue", "orange", "green"))

# The keys are `Any` because matplotlib's types spell out every key, and differ between releases.
_PLOT_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    # At this size 1 SVG unit is about 1 CSS pixel, both in three columns and on a phone.
    "figure.figsize": (4.7, 3.4),
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "tinyqa",
    "text.color": INK,
    # Labels may hold file names; a `$` in one is not mathematics.
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
}

_CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1.05rem; line-height: 1.4; margin: 0 0 .5rem; }
p { margin: .5rem 0; }
.muted, figcaption { color: var(--muted); font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1.5rem .35rem 0;
  border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--muted); }
td { overflow-wrap: anywhere; }
.cards { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fill, minmax(min(12.5rem, 100%), 1fr)); }
.card { padding: .8rem 1rem; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; }
.card p { margin: 0; }
.card .value { font-size: 1.75rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.plots { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
figure { margin: 0; max-width: 32rem; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
figcaption { margin-top: .5rem; }
article { padding: 1.1rem 0; border-top: 1px solid var(--line); }
.passage { white-space: pre-wrap; overflow-wrap: anywhere; margin: .75rem 0 0; max-width: 48rem; }
mark { background: var(--highlight); color: inherit; padding: .05em .15em; border-radius: .2em; }
.right { color: var(--green); } .wrong { color: var(--red); } .partly { color: var(--orange); }
.tag { font-weight: 600; }
@media print { main { max-width: none; } article, figure, .card { break-inside: avoid; } }
""".strip()


def _variables(shade: int) -> str:
    return " ".join(f"--{name}: {shades[shade]};" for name, shades in _PALETTE.items())


def page(title: str, body: str) -> str:
    """Wrap ``body`` in a complete HTML document with the common style.

    Args:
        title: plain text for the window title and the heading; it is escaped.
        body: HTML, not escaped. Use `table`, `cards`, `captioned`, `marked` or ``html.escape`` to make it.
    """
    heading = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>\n"
        f":root {{ color-scheme: light dark; {_variables(0)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}\n{_CSS}\n"
        f"</style>\n</head>\n<body>\n<main>\n<h1>{heading}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(rows: Sequence[Sequence[str]], header: Sequence[str] | None = None) -> str:
    """Return a table of plain-text cells, all escaped; the first cell of each row names the row.

    Raises:
        InputError: rows (or the header) differ in length.
    """
    widths = {len(row) for row in rows} | ({len(header)} if header is not None else set())
    if len(widths) > 1:
        raise InputError(f"table rows have {sorted(widths)} cells; give all the same number")
    head = ""
    if header is not None:
        cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        head = f"<thead><tr>{cells}</tr></thead>\n"
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        name = "".join(f'<th scope="row">{escape(cell)}</th>' for cell in row[:1])
        lines.append(f"<tr>{name}{cells}</tr>")
    inner = "\n".join(lines)
    return f'<div class="scroll"><table>\n{head}<tbody>\n{inner}\n</tbody></table></div>'


def cards(metrics: Sequence[tuple[str, str, str]]) -> str:
    """Return one card for each (name, formatted value, one-line explanation); all three are escaped."""
    items = "\n".join(
        f'<div class="card"><p class="muted">{escape(name)}</p><p class="value">{escape(value)}</p>'
        f'<p class="muted">{escape(explanation)}</p></div>'
        for name, value, explanation in metrics
    )
    return f'<div class="cards">\n{items}\n</div>'


def marked(context: str, start: int, end: int) -> str:
    """Return ``context`` escaped, with the characters [start, end) in ``<mark>``; no mark if start == end.

    Raises:
        InputError: the span does not lie in the context.
    """
    if not 0 <= start <= end <= len(context):
        raise InputError(
            f"span [{start}, {end}) does not lie in a context of {len(context)} characters; "
            "give character offsets with 0 <= start <= end <= length"
        )
    if start == end:
        return escape(context)
    before, answer, after = context[:start], context[start:end], context[end:]
    return f"{escape(before)}<mark>{escape(answer)}</mark>{escape(after)}"


def captioned(svg: str, caption: str) -> str:
    """Put a drawing (HTML) above its caption (plain text, escaped)."""
    return f"<figure>\n{svg}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def plot_style() -> AbstractContextManager[None]:
    """Return the context manager in which figures are made, so that all plots look alike."""
    return mpl.rc_context(_PLOT_STYLE)


def figure_svg(figure: Figure, label: str = "") -> str:
    """Return ``figure`` as inline SVG: the same figure always gives the same characters.

    Colours of this module (``INK``, ``BLUE``, ...) follow the page's light or dark scheme. The ids contain a
    hash of the drawing, so that several drawings can share a page.

    Args:
        figure: a figure made inside ``with plot_style():``.
        label: what the drawing shows, for screen readers.
    """
    buffer = io.StringIO()
    with plot_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    # A <style> inside inline SVG would apply to the whole page; the metadata holds only links.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\n\s*(?=\n)", "", svg)
    prefix = "plot-" + hashlib.sha256(svg.encode()).hexdigest()[:12]
    for name, (light, _) in _PALETTE.items():
        svg = re.sub(rf"(?<=: ){light}\b", f"var(--{name}, {light})", svg)
    svg = re.sub(r'(?<=\bid=")|(?<=url\(#)|(?<=href="#)', f"{prefix}-", svg)
    opening = f'<svg role="img" aria-label="{escape(label)}" style="stroke-linejoin: round"'
    return svg.replace("<svg", opening, 1)
