"""The words of a command line: put in order, read, and refused in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from tinyqa_ray import configs
from tinyqa_ray.core.errors import InputError

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
"""Options have no prefix of the config they belong to, and a switch takes True or False."""

_RULE = re.compile("[╭╰]|[─-]{3,}$")
"""A line of the parser's box: it has corners only where the output is in Unicode."""

Option = tuple[tuple[str, ...], Any]
"""Where an option's value belongs in a config (``("window", "doc_stride")``), and its type."""


def settings(config: type) -> dict[str, Option]:
    """A config's options by name: ``learning-rate`` and, without a prefix, its window's ``doc-stride``."""
    found: dict[str, Option] = {}
    for name, hint in get_type_hints(config).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inner = settings(hint).items()
            found |= {option: ((name, *path), inner_hint) for option, (path, inner_hint) in inner}
        else:
            found[name.replace("_", "-")] = ((name,), hint)
    return found


def normalised(arguments: Sequence[str]) -> list[str]:
    """The arguments with every option of several values given once, its values apart.

    ``--student-layers 1,3 --student-layers 5`` becomes ``--student-layers 1 3 5``. A comma separates no
    paths, since a path may hold one: those come apart, or with the option repeated.
    """
    result = list(arguments)
    for option in dict.fromkeys(_spelt(argument) for argument in arguments if is_option(argument)):
        takes_commas = _several_values().get(option.rpartition(".")[2].removeprefix("--"))
        if takes_commas is not None:
            result = gathered(result, option, commas=takes_commas)
    return result


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


def flattened(options: Mapping[str, Sequence[str]]) -> list[str]:
    """Grouped options as the words of a command line."""
    return [word for name, values in options.items() for word in (f"--{name}", *values)]


def is_option(argument: str) -> bool:
    """Whether a word names an option; a negative number is a value."""
    return argument.startswith("-") and not re.match(r"-\.?\d", argument)


def takes_several(hint: Any) -> bool:
    """Whether a type is a tuple, or None or one."""
    return any(get_origin(each) is tuple for each in (hint, *get_args(hint)))


@functools.cache
def _several_values() -> dict[str, bool]:
    """Options of several values, and whether a comma separates them: not where they may be paths."""
    found = {"stage": True}
    for name in configs.__all__:
        config = getattr(configs, name)
        if dataclasses.is_dataclass(config) and isinstance(config, type):
            for option, (_, hint) in settings(config).items():
                if takes_several(hint):
                    found[option] = tuple[str, ...] not in (hint, *get_args(hint))
    return found


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
