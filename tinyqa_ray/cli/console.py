"""What the shell shows while stages run: a progress bar per stage, and none of Ray's own output."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tinyqa_ray.cli import summary
from tinyqa_ray.cli.quickstart_screen import QuickstartScreen
from tinyqa_ray.core import stage_folder, storage
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.quickstart import ABOUT
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.recipes.run import StageResult


@contextlib.contextmanager
def native_noise_in_a_file() -> Iterator[Path]:
    """Redirect what Ray's C++ parts write to stderr into a log file; Python's own stderr stays.

    The file is kept only if it is not empty, after a failure that is not told in one line.
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
    except (InputError, StoreError):
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
    """Run every stage of the quickstart, show its first answers as soon as they are there, then its end."""
    terminal = Console()
    plain = not terminal.is_terminal
    names = [name for name, _ in recipe.stages]
    finished = [name for name in names if stage_folder.is_finished(storage.join(output, name))]
    screen = QuickstartScreen(terminal, names, ABOUT, finished)

    def done(result: StageResult) -> None:
        screen.done(result)
        if result.name == "first-answers" and not result.was_finished:
            terminal.print(*summary.examples(result, shown=2, plain=plain))

    with native_noise_in_a_file(), screen:
        results = run.run(recipe, output, screen.starting, done)
    terminal.print(summary.quickstart(results, plain=plain))
    terminal.print(summary.commands(results), soft_wrap=True)


class StageProgress:
    """One progress bar per stage."""

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
        """Begin a stage's bar; returns the function that takes its progress and a note on how it goes."""
        task = self._bars.add_task(name, total=None, note="")
        return lambda done, total, note="": self._bars.update(task, completed=done, total=total, note=note)

    def done(self, result: StageResult) -> None:
        """Replace the stage's bar with a line that stays."""
        for task in self._bars.task_ids:
            self._bars.remove_task(task)
        if result.was_finished:
            self._console.print(f"[dim]✓ {result.name}: was finished[/]")
        else:
            self._console.print(f"✓ {result.name}: {summary.rows(result.report)} in {result.seconds:.0f} s")
