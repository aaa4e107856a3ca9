"""The tutorial, and README's six commands, run as they stand, with less data and fewer steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

from tinyqa_ray.core import bundled
from tinyqa_ray.datasets import squad

WALKS = {
    "README.md": ["augment", "teacher-logits", "distill", "evaluate", "answer"],
    "docs/tutorial.md": [
        *("augment", "teacher-logits", "distill", "evaluate", "answer", "export"),
    ],
}
"""Stages of each page, in order; ``ask`` is run by another test, ``serve`` by those of the server."""


def stages(page: str) -> list[list[str]]:
    """The commands of a page that write an output."""
    return [
        words[1:]
        for block in pages.blocks("sh")
        if block.page == pages.ROOT / page
        for words in pages.calls(block)
        if words[0] == "tinyqa" and "--output" in words
    ]


def smaller(words: list[str]) -> list[str]:
    """The same command, over in seconds."""
    made = list(words)
    if "--epochs" in made:
        made[made.index("--epochs") + 1] = "0.05"
    if made[0] == "export":
        made += ["--calibration-questions", "8", "--check-questions", "8"]
        made[made.index("--max-f1-drop") + 1] = "100"
    return [re.sub("squad2_train", "squad2_calibration", word) for word in made]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", WALKS)
def test_page_can_be_followed_to_its_end(page: str, tmp_path: Path) -> None:
    commands = stages(page)
    assert [words[0] for words in commands] == WALKS[page]
    (tmp_path / "tinyqa_ray").symlink_to(pages.ROOT / "tinyqa_ray")
    for words in commands:
        ran = subprocess.run(
            [sys.executable, "-m", "tinyqa_ray", *smaller(words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(pages.ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{words}: {ran.stderr[-2000:]}"
        output = tmp_path / words[words.index("--output") + 1]
        assert (output / "_SUCCESS.json").is_file(), words


@pytest.mark.parametrize("page", ["docs/tutorial.md", "docs/not-promised.md"])
def test_pages_say_how_many_questions_the_bundled_student_learns_from(page: str) -> None:
    questions = sum(len(each.questions) for each in squad.read_squad(bundled.asset("squad2_train.json")))
    assert f"from {questions} questions" in " ".join((pages.ROOT / page).read_text(encoding="utf-8").split())
