"""What the quickstart shows while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tinyqa_ray.augment import AugmentReport
from tinyqa_ray.cli.quickstart_screen import QuickstartScreen, said_seconds
from tinyqa_ray.recipes.quickstart import ABOUT, About, quickstart
from tinyqa_ray.recipes.run import StageResult

STAGES = {name: About(purpose=f"{name} is made", seconds=seconds) for name, seconds in (("a", 10), ("b", 30))}
REPORT = AugmentReport(
    paragraphs=2,
    copies=4,
    questions=4,
    words=10,
    words_replaced=5,
    teacher_found_in_originals=None,
    teacher_found_in_copies=None,
    questions_left_out=0,
)


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def result(name: str, seconds: float, *, was_finished: bool = False) -> StageResult:
    return StageResult(name=name, report=REPORT, seconds=seconds, was_finished=was_finished, output="out")


def screen(
    clock: Clock, *, terminal: bool = False, finished: tuple[str, ...] = ()
) -> tuple[QuickstartScreen, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=terminal)
    return QuickstartScreen(console, list(STAGES), STAGES, finished, clock), file


def test_time_left_is_that_of_the_stages_at_first() -> None:
    shown, _ = screen(Clock())
    assert shown.left_s() == 40


def test_slow_machine_is_told_by_the_stages_that_are_done() -> None:
    shown, _ = screen(Clock())
    shown.starting("a")
    shown.done(result("a", 20.0))
    assert shown.left_s() == 60


def test_what_was_finished_before_says_nothing_of_the_machine() -> None:
    shown, file = screen(Clock(), finished=("a",))
    assert shown.left_s() == 30
    shown.starting("a")
    shown.done(result("a", 500.0, was_finished=True))
    assert shown.left_s() == 30
    assert file.getvalue() == "✓ a: was finished\n"


def test_running_stage_is_judged_by_its_own_progress() -> None:
    clock = Clock()
    shown, _ = screen(clock)
    progress = shown.starting("a")
    clock.now += 4
    assert shown.left_s() == 6 + 30
    progress(1, 5)
    assert shown.left_s() == 16 + 30


def test_overdue_stage_takes_no_time_back() -> None:
    clock = Clock()
    shown, _ = screen(clock)
    shown.starting("a")
    clock.now += 60
    assert shown.left_s() == 30


def test_without_a_terminal_each_stage_is_a_line_at_its_start_and_at_its_end() -> None:
    shown, file = screen(Clock())
    with shown:
        shown.starting("a")
        shown.done(result("a", 12.3))
        shown.starting("b")
        shown.done(result("b", 1.0, was_finished=True))
    lines = file.getvalue().splitlines()
    assert lines == [
        "▶ a: a is made (40 s left in all)",
        "✓ a: 4 paragraphs of 2, 50% of words replaced in 12 s",
        "▶ b: b is made (37 s left in all)",
        "✓ b: was finished",
    ]


def test_terminal_has_all_stages_at_once() -> None:
    clock = Clock()
    shown, file = screen(clock, terminal=True)
    shown.starting("a")
    shown.done(result("a", 12.0))
    progress = shown.starting("b")
    clock.now += 9
    progress(1, 2, "loss 1.5")
    shown._console.print(shown.shown())
    printed = file.getvalue()
    assert "4 paragraphs of 2" in printed
    assert "b is made" in printed
    assert "loss 1.5" in printed
    assert "about 9 s left" in printed


@pytest.mark.parametrize("teacher", [False, True])
def test_every_stage_of_the_quickstart_is_explained(teacher: bool, tiny_bert: str) -> None:
    recipe = quickstart(tiny_bert if teacher else None, baseline=teacher)
    names = {name for name, _ in recipe.stages}
    assert names <= set(ABOUT)
    assert all(about.seconds > 0 for about in ABOUT.values())


def test_seconds_are_said_in_minutes_when_there_are_many() -> None:
    assert [said_seconds(each) for each in (0.4, 59.4, 59.6, 200)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "3 min 20 s",
    ]
