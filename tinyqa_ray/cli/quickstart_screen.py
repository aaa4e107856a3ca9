"""What the shell shows while the quickstart runs: its stages, what for, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tinyqa_ray.cli import summary
from tinyqa_ray.recipes.quickstart import About
from tinyqa_ray.recipes.run import StageResult

_UNSURE = 0.05
"""Share of a stage from which on its own speed tells how long it takes; the start of workers is over then."""


class QuickstartScreen:
    """One display of all stages on a terminal; elsewhere, a line as each begins and one as it ends."""

    def __init__(
        self,
        console: Console,
        stages: Sequence[str],
        about: Mapping[str, About],
        finished: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show ``stages``, in their order, on ``console``; those in ``finished`` will not run."""
        self._console, self._stages, self._about, self._clock = console, list(stages), about, clock
        self._finished = set(finished)
        self._done: dict[str, StageResult] = {}
        self._running: str | None = None
        self._began = clock()
        self._share, self._note = 0.0, ""
        self._spinner = Spinner("dots")
        self._live = Live(console=console, get_renderable=self.shown, refresh_per_second=4)

    def __enter__(self) -> QuickstartScreen:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def starting(self, name: str) -> Callable[..., None]:
        """Begin a stage; returns the function that gets its progress and a note on how it goes."""
        self._running, self._began = name, self._clock()
        self._share, self._note = 0.0, ""
        if not self._console.is_terminal and name not in self._finished:
            left = said_seconds(self.left_s())
            self._console.print(f"▶ {name}: {self._about[name].purpose} ({left} left in all)", soft_wrap=True)

        def progress(done: int, total: int | None, note: str = "") -> None:
            self._share = done / total if total else 0.0
            self._note = note

        return progress

    def done(self, result: StageResult) -> None:
        """Mark a stage as done."""
        self._done[result.name] = result
        self._running = None
        if not self._console.is_terminal:
            self._console.print(self._told(result), soft_wrap=True)

    def left_s(self) -> float:
        """Seconds that the stages that are not done will take, by how fast those before went.

        Stages take as many times their seconds in ``about`` as the finished ones did; the running one is also
        judged by its own progress.
        """
        went = [each for each in self._done.values() if not each.was_finished]
        expected = sum(self._about[each.name].seconds for each in went)
        pace = sum(each.seconds for each in went) / expected if expected else 1.0
        gone = {*self._done, *self._finished, self._running}
        waiting = [name for name in self._stages if name not in gone]
        left = pace * sum(self._about[name].seconds for name in waiting)
        if self._running is None:
            return left
        elapsed = self._clock() - self._began
        whole = pace * self._about[self._running].seconds
        if self._share > _UNSURE:
            whole = elapsed / self._share
        return left + max(0.0, whole - elapsed)

    def shown(self) -> RenderableType:
        """The display as it is now."""
        table = Table.grid(padding=(0, 1))
        for width in (1, None, None, None, None):
            table.add_column(width=width, no_wrap=True)
        for name in self._stages:
            table.add_row(*self._row(name))
        if len(self._done) == len(self._stages):
            return table
        return Group(table, Text(f"about {said_seconds(self.left_s())} left", style="bold"))

    def _row(self, name: str) -> tuple[RenderableType, ...]:
        if name in self._done:
            result = self._done[name]
            took = "was finished" if result.was_finished else said_seconds(result.seconds)
            return (
                Text("✓", style="green"),
                Text(name),
                Text(summary.rows(result.report), style="dim"),
                "",
                took,
            )
        purpose = Text(self._about[name].purpose)
        if name != self._running:
            purpose.stylize("dim")
            return Text("·", style="dim"), Text(name, style="dim"), purpose, "", ""
        bar = ProgressBar(total=1.0, completed=self._share, width=24)
        took = said_seconds(self._clock() - self._began)
        return (
            self._spinner,
            Text(name, style="bold"),
            purpose,
            bar,
            Text.assemble(took, " ", (self._note, "dim")),
        )

    def _told(self, result: StageResult) -> str:
        if result.was_finished:
            return f"✓ {result.name}: was finished"
        return f"✓ {result.name}: {summary.rows(result.report)} in {said_seconds(result.seconds)}"


def said_seconds(seconds: float) -> str:
    """Seconds as people say them: ``48 s``, ``3 min 20 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
