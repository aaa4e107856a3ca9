"""Reads command lines with tyro, and adds what tyro lacks.

That is an option given once for all stages of a recipe that have it, several values separated by commas or
given by repeating the option, and mistakes refused in one line.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType, get_args, get_origin, get_type_hints

import tyro

from tinyqa_ray import configs
from tinyqa_ray.configs import renamed
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe, is_wired

Given = dict[str, list[list[str]]]
"""Values by option (``--seed``), a list each time that it was typed; ``""``: words before all options."""

_Stage = NewType("_Stage", str)
_HELP = ("-h", "--help", "-H", "--help-verbose")
_USAGE = """\
usage: {program} --recipe NAME --output DIR [--stage STAGE ...] [--OPTION VALUE ...]

Run the stages of a recipe, each in a folder of its own in DIR; run again, only what is left is done.
Recipes: {names}. What one takes, its stages, and how to change a number in them:
{program} --recipe NAME --help"""
_OVERRIDES = """

Every option of a stage can be changed: in that stage with --student.learning-rate 1e-4, in all chosen stages
that have it with --learning-rate 1e-4 --workers 2 --no-use-gpu. A path such as @student/model is what an
earlier stage makes."""
_ARGUMENTS = """

Args:
    output: Folder of all stages, each in one of its own; run again, only what is left is done.
    stage: Stages to run, one or several; all when not given.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeCall:
    """What a command line with ``--recipe`` asks for."""

    recipe: Recipe
    """The recipe, with the options of its stages applied."""
    stages: tuple[str, ...]
    """Stages to run, in the recipe's order."""
    output: str


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


def names_recipe(words: Sequence[str]) -> bool:
    """Whether a command line asks for a recipe, not for one stage."""
    return any(word.partition("=")[0] == "--recipe" for word in words)


def recipe_call(words: Sequence[str], program: str) -> RecipeCall:
    """The recipe that a command line asks for; with ``--help``, help is printed and the process ends.

    Args:
        words: the words after the command's name.
        program: the command, for messages.

    Raises:
        InputError: an unknown recipe, stage or option, or a value that is refused.
    """
    asked = [word for word in words if word in _HELP]
    known = ", ".join(published.RECIPES)
    with pointing_to_help(program):
        given = grouped([word for word in words if word not in _HELP])
        if "--recipe" not in given and asked:
            print(_USAGE.format(program=program, names=known))
            raise SystemExit(0)
        name = " ".join(given.pop("--recipe", [[]])[-1])
        if not name:
            raise InputError(f"--recipe is missing; give one of {known}")
        if name not in published.RECIPES:
            raise InputError(f"recipe {name!r} is unknown; it must be one of {known}")
    program = f"{program} --recipe {name}"
    with pointing_to_help(program):
        return _called(published.RECIPES[name], given, program, asked)


def _called(make: Callable[..., Recipe], given: Given, program: str, asked: Sequence[str]) -> RecipeCall:
    """Read the call of a recipe in two steps: its parameters, which decide its stages, then their options."""
    own = options(_function(make))
    if asked:
        given.setdefault("--output", [["DIR"]])
    words = spelt({name: times for name, times in given.items() if name in own}, own)
    values = refused_in_one_line(lambda: tyro.cli(_function(make), args=words, prog=program))
    output, names = values.pop("output"), values.pop("stage")
    try:
        recipe = make(**values)
    except InputError as error:
        if not asked:
            raise
        recipe = Recipe(name=make.__name__, stages=())
        print(f"its stages are not known yet: {error}\n")
    chosen = tuple(stage for stage, _ in recipe.stages if stage in names or not names)
    others = {name: times for name, times in given.items() if name not in own}
    words += _overrides(recipe, chosen, others if recipe.stages else {}, own)
    recipe = _changed(recipe, make, words, program)
    if asked:
        _changed(recipe, make, [*words, *asked], program)
    return RecipeCall(recipe=recipe, stages=chosen, output=output)


def _changed(recipe: Recipe, make: Callable[..., Recipe], words: Sequence[str], program: str) -> Recipe:
    """The recipe with the options of its stages applied; help shows the recipe's values."""
    function = _function(make, recipe)
    found = refused_in_one_line(
        lambda: tyro.cli(function, args=words, prog=program, registry=_FLAT, compact_help=True)
    )["stages"]
    stages = ((stage, getattr(found, stage.replace("-", "_"))) for stage, _ in recipe.stages)
    return Recipe(name=recipe.name, stages=tuple(stages))


def _overrides(recipe: Recipe, chosen: Collection[str], given: Given, own: Collection[str]) -> list[str]:
    """The options of a recipe's stages, each prefixed with its stage for tyro: ``--student.seed=1``.

    Args:
        recipe: the recipe, with every stage.
        chosen: names of the stages that options may change.
        given: typed options: ``--seed`` for every chosen stage that has it, or ``--student.seed`` for one
            stage, which takes precedence.
        own: options of the recipe itself, which may be suggested for an unknown option.

    Raises:
        InputError: no chosen stage has an option, or an option has a wrong number of values.
    """
    stages = dict(recipe.stages)
    known = {stage: options(type(config)) for stage, config in stages.items()}
    hints = {f"--{stage}.{option[2:]}": hint for stage in stages for option, hint in known[stage].items()}
    found: Given = {}
    for name in sorted(given, key=lambda name: "." in name):
        stage, _, option = name[2:].rpartition(".")
        having = [each for each in stages if f"--{option}" in known[each] and stage in ("", each)]
        reached = [each for each in having if each in chosen]
        field = option.replace("-", "_")
        wired = [each for each in reached if hasattr(stages[each], field) and is_wired(stages[each], field)]
        if name and not having:
            named = [config for each, config in stages.items() if stage in ("", each)]
            renamed.refuse_old_options([name], *map(stage_folder.stage_name, named))
            names = {*own, *(hints if stage else (each for options in known.values() for each in options))}
            near = difflib.get_close_matches(name, sorted(names), n=3)
            hint = f"the nearest: {', '.join(near)}" if near else "none is named like it"
            raise InputError(f"{name} is no option of recipe {recipe.name} or its stages; {hint}")
        if having and not reached:
            raise InputError(f"{name} is for {', '.join(having)}, not for a stage that --stage chose")
        if wired and len(reached) > 1:
            raise InputError(
                f"{name} is the output of an earlier stage in {', '.join(wired)}; "
                f"say which stage is meant: --{wired[0]}.{option}"
            )
        for each in reached:  # a wrong number of values is refused under the typed name
            spelt({name: given[name]}, {name: known[each][f"--{option}"]})
        found |= {f"--{each}.{option}": given[name] for each in reached} or {name: given[name]}
    return spelt(found, hints)


def _function(make: Callable[..., Recipe], recipe: Recipe | None = None) -> Callable[..., dict[str, Any]]:
    """A function that takes a recipe's parameters, and its stages once known, and returns its arguments."""

    def values(**arguments: Any) -> dict[str, Any]:
        return arguments

    kind = inspect.Parameter.KEYWORD_ONLY
    names: Any = Literal[tuple(stage for stage, _ in recipe.stages)] if recipe and recipe.stages else _Stage
    parameters = [
        inspect.Parameter("output", kind, annotation=str),
        inspect.Parameter("stage", kind, annotation=tuple[names, ...], default=()),
        *(each.replace(kind=kind) for each in inspect.signature(make, eval_str=True).parameters.values()),
    ]
    about, _, arguments = inspect.cleandoc(make.__doc__ or "").partition("\n\nArgs:\n")
    if recipe is not None:
        fields = [(name.replace("-", "_"), type(each), _as_typed(each)) for name, each in recipe.stages]
        stages = dataclasses.make_dataclass("Stages", fields, frozen=True)
        unprefixed: Any = Annotated[stages, tyro.conf.arg(name="")]
        parameters.append(inspect.Parameter("stages", kind, annotation=unprefixed, default=stages()))
        about += _OVERRIDES
    values.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    values.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    values.__doc__ = about + _ARGUMENTS + arguments
    return values


def _as_typed(config: Any) -> Any:
    """The config with None again in fields that it filled in from others, since these may change now."""
    typed = copy.copy(config)
    for field in dataclasses.fields(config):
        if field.default is None and getattr(config, field.name) is not None:
            with contextlib.suppress(InputError):
                if dataclasses.replace(config, **{field.name: None}) == config:
                    object.__setattr__(typed, field.name, None)
    return typed


_FLAT = tyro.constructors.ConstructorRegistry()
"""Makes the stage the only prefix of the options of a config's window: ``--windows.doc-stride``."""
_asking: list[Any] = []


@_FLAT.struct_rule
def _flat(info: tyro.constructors.StructTypeInfo) -> tyro.constructors.StructConstructorSpec | None:
    if _asking or not dataclasses.is_dataclass(info.type) or not hasattr(configs, info.type.__name__):
        return None
    _asking.append(info)  # this rule now steps aside for the rules below it
    try:
        spec = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
    finally:
        _asking.clear()
    assert isinstance(spec, tyro.constructors.StructConstructorSpec)
    unnamed: Any = tyro.conf.arg(name="")
    fields = []
    for field in spec.fields:
        kind: Any = Annotated[field.type, unnamed] if dataclasses.is_dataclass(field.type) else field.type
        fields.append(dataclasses.replace(field, type=kind))
    return dataclasses.replace(spec, fields=tuple(fields))


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

    If the reader of its output stops early (``| head``), it ends quietly with 141, as the shell's tools do.
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
