"""Reads command lines with tyro, and adds what tyro lacks.

That is several values separated by commas or given by repeating the option, and mistakes refused in one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from tinyqa_ray.core.errors import InputError, StoreError

Given = dict[str, list[list[str]]]
"""Values by option (``--seed``), a list each time that it was typed; ``""``: words before all options."""


def parsed(function: Callable[..., Any], words: Sequence[str], program: str) -> Any:
    """Call ``function`` with the options of a command line; options of configs have no prefix.

    Args:
        function: its annotations define the options.
        words: the words after the program's name.
        program: name of the program, for help and messages.

    Returns:
        what ``function`` returns.

    Raises:
        InputError: an option or value is refused.
    """
    hints = options(function)
    with pointing_to_help(program):
        typed = spelt(grouped(words), hints) if hints else words
        return refused_in_one_line(
            lambda: tyro.cli(function, args=typed, prog=program, config=(tyro.conf.OmitArgPrefixes,))
        )


def grouped(words: Sequence[str]) -> Given:
    """Group words by option; a negative number is a value."""
    found: Given = {"": [[]]}
    name = ""
    for word in words:
        if word.startswith("-") and not re.match(r"-\.?\d", word):
            name, equals, value = word.partition("=")
            name = name.replace("_", "-")
            found.setdefault(name, []).append([value] if equals else [])
        else:
            found[name][-1].append(word)
    return found


def spelt(given: Given, hints: Mapping[str, Any]) -> list[str]:
    """Write typed options in the one form that tyro takes.

    An option of several values is written once, with its values apart: ``--stage a,b --stage c`` becomes
    ``--stage=a b c``. Paths are not split at commas, since a path may hold one. If another option is
    repeated, the last one counts. A switch has no value: ``--use-gpu False`` becomes ``--no-use-gpu``.

    Args:
        given: typed options.
        hints: types by option; options without a type are left as they are.

    Raises:
        InputError: an option has a wrong number of values.
    """
    words = []
    for name, times in given.items():
        hint, values = hints.get(name), times[-1]
        if hint is bool and values:
            stage, dot, option = name[2:].rpartition(".")
            off = f"--{stage}{dot}no-{option}"
            if values not in (["True"], ["False"]):
                raise InputError(f"{name} takes no value; given: {' '.join(values)}; say {name} or {off}")
            words.append(name if values == ["True"] else off)
        elif hint in (None, bool):
            words += [name, *(value for each in times for value in each)] if name else values
        else:
            if _takes_several(hint):
                values = [value for each in times for value in each]
                if tuple[str, ...] not in (hint, *get_args(hint)):
                    values = [part for value in values for part in value.split(",") if part]
            elif len(values) != 1:
                raise InputError(f"{name} takes one value; given: {' '.join(values) or 'none'}")
            # Behind "=" a value may begin with a dash.
            words += [f"{name}={values[0]}", *values[1:]] if values else [name]
    return words


def options(of: Callable[..., Any] | type) -> dict[str, Any]:
    """Types by option of a config or function: ``--seed`` and, for its window, ``--doc-stride``.

    Empty for a function with a positional argument, since that may follow the values of any option.
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(of, include_extras=True).items():
        if get_origin(hint) is Annotated:
            return {}
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= options(hint)
        elif name != "return":
            option = name.replace("_", "-")
            found |= {f"--{option}": hint, **({f"--no-{option}": hint} if hint is bool else {})}
    return found


def _takes_several(hint: Any) -> bool:
    """Whether a type is a tuple or an optional tuple."""
    return any(get_origin(each) is tuple for each in (hint, *get_args(hint)))


def refused_in_one_line(parse: Callable[[], Any]) -> Any:
    """What ``parse`` returns; a refusal by tyro or a config becomes an ``InputError`` of one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return parse()
    except SystemExit as stop:
        said = _sentence(box.getvalue())
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            stage = re.match(r"Error parsing stages\.(\S+):", said)
            said = f"stage {stage[1]}: {cause}" if stage else str(cause)
        if not said:
            raise
        raise InputError(said) from None


def _sentence(box: str) -> str:
    """The text of tyro's error box (as tyro 1.0 draws it) in one line, without descriptions of options."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    text = "\n".join(line.strip("│ ") for line in plain.splitlines())
    said: list[str] = []
    # The title stands before the first rule; rules have corners only if the output is in Unicode.
    for part in re.split(r"(?m)^(?:[╭╰].*|[─-]{3,})$", text)[1:]:
        lines = [line for line in part.splitlines() if line]
        if lines and not lines[0].startswith(("For full helptext", "Argument helptext")):
            # A first line with a colon is followed by options and their descriptions.
            listed = [line for line in lines[1:] if re.match(r"--|[A-Z]+$", line)]
            said.append(f"{lines[0]} {', '.join(listed)}" if listed else " ".join(lines))
    return "; ".join(part.rstrip(".") for part in said)


@contextlib.contextmanager
def pointing_to_help(program: str) -> Iterator[None]:
    """Add to an ``InputError`` about a command line which ``--help`` tells more."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error} (see {program} --help)") from None


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the process with 2 and one line for an ``InputError``, with 130 when interrupted.

    A ``StoreError`` is one line and 75 (``EX_TEMPFAIL`` of sysexits.h): the same command may succeed later.

    If the reader of its output stops early (``| head``), it ends quietly with 141, as the shell's tools do.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (InputError, StoreError) as error:
        # An error of a Ray task holds the worker's traceback; its cause is the error itself.
        print(f"tinyqa: {getattr(error, 'cause', error)}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, InputError) else os.EX_TEMPFAIL) from None
    except KeyboardInterrupt:
        print("tinyqa: interrupted; run the same command again to continue", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        if not _output_is_closed():
            raise
        # Python flushes stdout once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _output_is_closed() -> bool:
    """Whether stdout is the broken pipe, and not another one."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False
