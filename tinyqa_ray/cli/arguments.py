"""What tyro leaves to us: the forms in which people type values, and mistakes in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from tinyqa_ray import configs
from tinyqa_ray.core.errors import InputError

FLAT = (tyro.conf.OmitArgPrefixes,)
"""Options have no prefix of the config they belong to."""

_RULE = re.compile("[╭╰]|[─-]{3,}$")
"""A line of the parser's box: it has corners only where the output is in Unicode."""


def hints(config: type) -> dict[str, Any]:
    """Types of a config's options by name: ``learning-rate`` and, of its window, ``doc-stride``."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(config).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= hints(hint)
        else:
            found[name.replace("_", "-")] = hint
    return found


@functools.cache
def all_hints() -> dict[str, Any]:
    """Types of all configs' options, and of a recipe's ``stage``, by name."""
    given = [getattr(configs, name) for name in configs.__all__]
    found: dict[str, Any] = {"stage": tuple[Any, ...]}
    for config in given:
        if dataclasses.is_dataclass(config) and isinstance(config, type):
            found |= hints(config)
    return found


def normalised(arguments: Sequence[str]) -> list[str]:
    """The arguments as tyro takes them.

    An option of several values is given once, with its values apart: ``--layers 1,3 --layers 5`` becomes
    ``--layers 1 3 5``. A comma does not separate paths, since a path may hold one: give them apart, or repeat
    the option. A switch has no value: ``--jsonl True`` becomes ``--jsonl``, and ``--use-gpu False`` becomes
    ``--no-use-gpu``.
    """
    result = list(arguments)
    for option in dict.fromkeys(_spelt(argument) for argument in arguments if is_option(argument)):
        stage, dot, name = option.removeprefix("--").rpartition(".")
        hint = all_hints().get(name)
        if hint is bool:
            result = _switched(result, option, f"--{stage}{dot}no-{name}")
        elif takes_several(hint):
            result = gathered(result, option, commas=tuple[str, ...] not in (hint, *get_args(hint)))
    return result


def _switched(arguments: Sequence[str], option: str, negated: str) -> list[str]:
    """The arguments with a switch that has a value, True or False, as one that has none."""
    made: list[str] = []
    switch = False
    for argument in arguments:
        word, _, value = argument.partition("=")
        if switch and argument in ("True", "False"):
            made[-1] = option if argument == "True" else negated
        elif is_option(argument) and _spelt(word) == option and value in ("", "True", "False"):
            made.append(negated if value == "False" else option)
        else:
            made.append(argument)
        switch = made[-1] == option and not value
    return made


def gathered(arguments: Sequence[str], option: str, *, commas: bool = False) -> list[str]:
    """The arguments with the values of a repeated option all behind its first occurrence.

    The parser takes ``--teachers A B``, but of ``--teachers A --teachers B`` it would keep the last alone.

    Args:
        arguments: of a command line.
        option: with its dashes.
        commas: whether a comma separates values too.
    """
    marks = [i for i, argument in enumerate(arguments) if is_option(argument) and _spelt(argument) == option]
    if not marks:
        return list(arguments)
    before, *pieces = (list(arguments[i:j]) for i, j in itertools.pairwise([0, *marks, len(arguments)]))
    values: list[str] = []
    rest: list[str] = []
    for mark, *others in pieces:
        _, equals, value = mark.partition("=")
        own = list(itertools.takewhile(lambda each: not is_option(each), others))
        values += [value, *own] if equals else own
        rest += others[len(own) :]
    if commas:
        values = [part for value in values for part in value.split(",") if part]
    return [*before, option, *values, *rest]


def names_recipe(arguments: Sequence[str]) -> bool:
    """Whether a command line is of a recipe, not of one stage."""
    return any(argument.partition("=")[0] == "--recipe" for argument in arguments)


def grouped(arguments: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of every option, by its name without dashes; of a repeated one, the last.

    Raises:
        InputError: a word belongs to no option.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name = _spelt(argument).removeprefix("--")
            _, equals, value = argument.partition("=")
            found[name] = [value] if equals else []
        elif name and not is_option(argument):
            found[name].append(argument)
        else:
            raise InputError(f"{argument!r} belongs to no option; an option begins with --")
    return {name: tuple(values) for name, values in found.items()}


def is_option(argument: str) -> bool:
    """Whether a word names an option; a negative number is a value."""
    return argument.startswith("-") and not re.match(r"-\.?\d", argument)


def takes_several(hint: Any) -> bool:
    """Whether a type is a tuple, or None or one."""
    return any(get_origin(each) is tuple for each in (hint, *get_args(hint)))


def _spelt(argument: str) -> str:
    """An option's name as help spells it: ``--batch_size=8`` is ``--batch-size``."""
    return argument.partition("=")[0].replace("_", "-")


def parsed(parse: Callable[[], Any], *, one_line: bool = False) -> Any:
    """What ``parse`` returns; a value that a config refuses is an ``InputError``, not the parser's box.

    Args:
        parse: calls the parser.
        one_line: make the parser's own complaints an ``InputError`` too.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parse()
    except SystemExit as stop:
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        if one_line and complaint.getvalue():
            raise InputError(_sentence(complaint.getvalue())) from None
        print(complaint.getvalue(), file=sys.stderr, end="")
        raise


def _sentence(box: str) -> str:
    """What the parser's box (as tyro 1.0 draws it) says, from its title to its first rule, as one line."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    below = itertools.dropwhile(lambda line: not _RULE.match(line), lines)
    said = itertools.takewhile(lambda line: not _RULE.match(line), itertools.islice(below, 1, None))
    return " ".join(filter(None, said)).rstrip(".")


@contextlib.contextmanager
def pointing_to_help(program: str) -> Iterator[None]:
    """Let an ``InputError`` about a command line say whose ``--help`` tells more."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (see {program} --help)") from None


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the process with 2 and one line for an ``InputError``, with 130 when interrupted.

    A reader of the output that leaves early (``| head``) ends it quietly, with 141 as the shell's tools.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"tinyqa: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("tinyqa: interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        # Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _output_is_closed() -> bool:
    """Whether nobody reads stdout any more, rather than another pipe being broken."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
