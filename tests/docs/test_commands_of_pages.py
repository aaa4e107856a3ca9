"""Every command in the pages can be typed as it stands, and the quick ones run."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from pathlib import Path

import pages
import pytest
import yaml

from tinyqa_ray.cli import arguments, main, recipe_arguments
from tinyqa_ray.configs import renamed
from tinyqa_ray.serve import schemas

SHELL = pages.blocks("sh")
JOBS = {"teacher_logits": "teacher-logits", "pipeline": "distill"}
"""Commands whose options a job has, where its name differs."""
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (pages.ROOT / "Makefile").read_text(encoding="utf-8")))
ELSEWHERE = {
    *("echo", "source", "export", "aws", "ray", "umask", "tensorboard"),
    *("docker", "cat", "curl"),
}
"""Programs of others whose options are not checked here."""


def parsed(words: list[str]) -> None:
    """Parse a command line of ``tinyqa`` as the shell does, without running it."""
    if words == ["--version"]:
        return
    name, *rest = words
    program = f"tinyqa {name}"
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        if name == "distill" and recipe_arguments.names_recipe(rest):
            recipe_arguments.recipe_call(rest, program)
        elif name == "evaluate" and main._names_suites(rest):
            main._suites(program, rest)
        else:
            renamed.refuse_old_options(rest, name)
            arguments.parsed(main._commands[name], rest, program)


def check(words: list[str]) -> None:
    """Check one simple command."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    program = Path(words[0].strip("()")).name
    if program == "tinyqa":
        parsed(words[1:])
    elif re.match(r"python3?$", program) and words[1].endswith(".py"):
        script = pages.ROOT / words[1]
        assert script.is_file(), script
        if script.parent.name == "jobs":
            parsed([JOBS.get(script.stem, script.stem), *words[2:]])
        else:
            text = script.read_text(encoding="utf-8")
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in text, word
    elif program == "make":
        assert set(words[1:]) <= TARGETS
    elif program == "pip":
        for word in words:
            for extra in re.findall(r"(?:^\.|tinyqa-ray)\[([\w,]+)\]", word):
                assert set(extra.split(",")) <= set(extras()), word
    elif program in ("serve", "kubectl"):
        for word in words:
            assert "/" not in word or ".yaml" not in word or (pages.ROOT / word).is_file(), word
    elif not re.match(r"python3?$", program):
        assert program in ELSEWHERE, program


def extras() -> list[str]:
    """Names of the project's extras."""
    text = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    table = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return re.findall(r"(?m)^(\w+) = \[", table)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_of_a_block_are_understood(block: pages.Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pages.ROOT)
    for words in pages.calls(block):
        check(words)


def test_a_wrong_command_is_seen() -> None:
    for line in (
        "tinyqa ask --colour red 'Who?'",
        "make coffee",
        "python jobs/answer.py --sort x",
        "rm -r /",
    ):
        with pytest.raises((Exception, SystemExit)):
            check(shlex.split(line))


def test_commands_in_running_text_exist() -> None:
    for page in pages.PAGES:
        text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
        for name in re.findall(r"`tinyqa ([a-z][a-z-]*)", text):
            assert name in main._commands, f"{page}: tinyqa {name}"


def test_bodies_of_requests_are_understood() -> None:
    bodies = [
        words[words.index("--json") + 1]
        for block in SHELL
        for words in pages.calls(block)
        if words[0] == "curl" and "--json" in words
    ]
    assert bodies
    for body in bodies:
        schemas.AnswerRequest.model_validate_json(body)


@pytest.mark.parametrize("block", pages.blocks("json", "yaml"), ids=str)
def test_data_in_pages_can_be_read(block: pages.Block) -> None:
    (json.loads if block.language == "json" else yaml.safe_load)(block.text)


def quick() -> list[list[str]]:
    """The commands that ask the package's model, each once."""
    asked = [
        words[1:]
        for block in SHELL
        for words in pages.calls(block)
        if words[:2] == ["tinyqa", "ask"] and "--model" not in words and "--file" not in words
    ]
    return [list(each) for each in dict.fromkeys(map(tuple, asked))]


def test_quick_commands_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert quick()
    for words in quick():
        main.main(words)
        answer, where = capsys.readouterr().out.splitlines()[:2]
        context = words[words.index("--context") + 1]
        start, end = map(int, re.findall(r"characters (\d+)-(\d+)", where)[0])
        assert answer == context[start:end], words
