"""A recipe's command line: its parameters, which of its stages run, and the numbers that are others."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import tyro

from tinyqa_ray.cli import options
from tinyqa_ray.configs import renamed
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe, StageConfig, is_wired

Given = Mapping[str, tuple[str, ...]]
"""Values by option, as they were typed."""

_ARGUMENTS = """
    output: Folder of all stages, each in one of its own; run again, only what is left is done.
    stage: Stages to run, one or several; all when not given.
"""
_USAGE = """\
usage: {program} --recipe NAME --output DIR [--stage STAGE ...] [--OPTION VALUE ...]

Run the stages of a recipe, each in a folder of its own in DIR; run again, only what is left is done.
Recipes: {names}. What one takes, its stages, and how to change a number in them:
{program} --recipe NAME --help"""
_OVERRIDES = """\
overrides:
  --OPTION VALUE        in every chosen stage that has the option:
                        --learning-rate 1e-4 --workers 2 --use-gpu False --num-gpus 0
  --STAGE.OPTION VALUE  in one stage: --student.learning-rate 1e-4
What an option means: the --help of the stage's own command."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeCall:
    """What a command line with ``--recipe`` asks for."""

    recipe: Recipe
    """With its overrides."""
    stages: tuple[str, ...]
    """Stages to run, in the recipe's order."""
    output: str


def read(arguments: Sequence[str], program: str) -> RecipeCall:
    """The recipe that a command line asks for; ``--help`` prints it instead, and ends the process.

    Args:
        arguments: ``normalised``, after the command's name.
        program: the command, for messages.

    Raises:
        InputError: an unknown recipe, stage or option, or a value that is refused.
    """
    asks = {"-h", "--help"}
    with options.pointing_to_help(program):
        given = options.grouped([word for word in arguments if word not in asks])
        if "recipe" not in given and asks & set(arguments):
            print(_USAGE.format(program=program, names=", ".join(published.RECIPES)))
            raise SystemExit(0)
        make = _recipe(given.pop("recipe", ()))
    program = f"{program} --recipe {make.__name__}"
    if asks & set(arguments):
        _print_help(make, given, program)
        raise SystemExit(0)
    with options.pointing_to_help(program):
        return _called(make, given)


def overridden(
    recipe: Recipe, chosen: Collection[str], given: Given, parameters: Collection[str] = ()
) -> Recipe:
    """The recipe with other numbers in its chosen stages.

    Args:
        recipe: with every stage.
        chosen: names of the stages that overrides reach.
        given: typed values by option: ``learning-rate`` for every chosen stage that has it, or
            ``student.learning-rate`` for one stage, which goes before.
        parameters: options of the recipe itself, to be suggested for an unknown one.

    Raises:
        InputError: no chosen stage has an option, or a value is refused.
    """
    changes: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in sorted(given, key=lambda name: "." in name):
        for stage in _stages_of(name, recipe, chosen, parameters):
            changes.setdefault(stage, {})[name.rpartition(".")[2]] = given[name]
    stages = [(stage, _changed(stage, config, changes.get(stage, {}))) for stage, config in recipe.stages]
    return Recipe(name=recipe.name, stages=tuple(stages))


def described(recipe: Recipe, width: int) -> str:
    """Each stage with the options that the recipe sets, as its own command takes them; for people."""
    margin = max(len(stage) for stage, _ in recipe.stages) + 4
    lines = []
    for stage, config in recipe.stages:
        # A space that does not break keeps an option and its values on one line.
        pairs = ["\xa0".join([f"--{name}", *values]) for name, values in _said(config).items()]
        lines += textwrap.wrap(
            " ".join([f"tinyqa\xa0{stage_folder.stage_name(config)}", *pairs]),
            width=width,
            initial_indent=f"  {stage}".ljust(margin),
            subsequent_indent=" " * margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines).replace("\xa0", " ")


def _recipe(values: Sequence[str]) -> Callable[..., Recipe]:
    name, known = " ".join(values), ", ".join(published.RECIPES)
    if not name:
        raise InputError(f"--recipe is missing; give one of {known}")
    if name not in published.RECIPES:
        raise InputError(f"recipe {name!r} is unknown; it must be one of {known}")
    return published.RECIPES[name]


def _parameters(make: Callable[..., Recipe]) -> list[inspect.Parameter]:
    """What the command line of a recipe takes beside overrides."""
    names: Any = tuple[str, ...] | None
    own = [
        inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, annotation=str),
        inspect.Parameter("stage", inspect.Parameter.KEYWORD_ONLY, annotation=names, default=None),
    ]
    given = inspect.signature(make, eval_str=True).parameters.values()
    return own + [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in given]


def _called(make: Callable[..., Recipe], given: Given) -> RecipeCall:
    parameters = _parameters(make)
    own = [parameter.name.replace("_", "-") for parameter in parameters]
    values = _typed(parameters, {name: each for name, each in given.items() if name in own})
    output, names = values.pop("output"), values.pop("stage") or ()
    recipe = make(**values)
    known = [stage for stage, _ in recipe.stages]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"stage {unknown[0]!r} is unknown; recipe {recipe.name} has {', '.join(known)}")
    chosen = tuple(stage for stage in known if stage in names or not names)
    others = {name: each for name, each in given.items() if name not in own}
    return RecipeCall(recipe=overridden(recipe, chosen, others, own), stages=chosen, output=output)


def _typed(parameters: Sequence[inspect.Parameter], given: Given) -> dict[str, Any]:
    """Typed values by parameter name, as the parser reads them."""
    for parameter in parameters:
        name = parameter.name.replace("_", "-")
        if name not in given and parameter.default is parameter.empty:
            raise InputError(f"--{name} is missing")
        values = given.get(name, ("",))
        if len(values) != 1 and not options.takes_several(parameter.annotation):
            raise InputError(f"--{name} takes one value; given: {' '.join(values) or 'none'}")
    words = options.flattened(given)
    found: dict[str, Any] = options.parsed(
        lambda: tyro.cli(_function(parameters), args=words, config=options.FLAT), one_line=True
    )
    return found


def _function(parameters: Sequence[inspect.Parameter]) -> Callable[..., dict[str, Any]]:
    """A function of these parameters that returns its arguments."""

    def values(**arguments: Any) -> dict[str, Any]:
        return arguments

    values.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    values.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return values


def _stages_of(name: str, recipe: Recipe, chosen: Collection[str], parameters: Collection[str]) -> list[str]:
    """The chosen stages that an option reaches."""
    stage, _, option = name.rpartition(".")
    configs = dict(recipe.stages)
    known = {each: options.settings(type(config)) for each, config in configs.items()}
    having = [each for each in known if option in known[each] and stage in ("", each)]
    reached = [each for each in having if each in chosen]
    if not having:
        named = [config for each, config in configs.items() if stage in ("", each)]
        renamed.refuse_old_options([f"--{name}"], *map(stage_folder.stage_name, named))
        names = {*parameters, *(o for each in known.values() for o in each)}
        names |= {f"{each}.{o}" for each in known for o in known[each]} if stage else set()
        near = difflib.get_close_matches(name, sorted(names), n=3)
        hint = f"the nearest: {', '.join(f'--{each}' for each in near)}" if near else "none is named like it"
        raise InputError(f"--{name} is no option of recipe {recipe.name} or its stages; {hint}")
    if not reached:
        raise InputError(f"--{name} is for {', '.join(having)}, not for a stage that --stage chose")
    wired = [each for each in reached if is_wired(configs[each], known[each][option][0][0])]
    if wired and len(reached) > 1:
        raise InputError(
            f"--{name} is the output of an earlier stage in {', '.join(wired)}; "
            f"say which stage is meant: --{wired[0]}.{option}"
        )
    return reached


def _changed(stage: str, config: StageConfig, given: Given) -> StageConfig:
    """The config of a stage with some options typed anew."""
    if not given:
        return config
    known = options.settings(type(config))
    kind = inspect.Parameter.KEYWORD_ONLY
    asked = [inspect.Parameter(name.replace("-", "_"), kind, annotation=known[name][1]) for name in given]
    changes: dict[str, Any] = dict.fromkeys(_filled_in(config))
    inner: dict[str, dict[str, Any]] = {}
    try:
        values = _typed(asked, given)
        for name in given:
            (field, *below), value = known[name][0], values[name.replace("-", "_")]
            if below:
                inner.setdefault(field, {})[below[0]] = value
            else:
                changes[field] = value
        changes |= {field: replace(getattr(config, field), **each) for field, each in inner.items()}
        return replace(config, **changes)
    except InputError as error:
        raise InputError(f"stage {stage}: {error}") from None


def _filled_in(config: Any) -> list[str]:
    """Fields that were left None and that the config filled in from others, which may change."""
    found = []
    for field in fields(config):
        if field.default is None and getattr(config, field.name) is not None:
            with contextlib.suppress(InputError):
                if replace(config, **{field.name: None}) == config:
                    found.append(field.name)
    return found


def _said(config: Any) -> dict[str, tuple[str, ...]]:
    """The options of a config that are not at their defaults, with their values as they are typed."""
    found: dict[str, tuple[str, ...]] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if value == field.default or field.name in _filled_in(config):
            continue
        if is_dataclass(value):
            found |= _said(value)
        else:
            values = value if isinstance(value, tuple) else (value,)
            found[field.name.replace("_", "-")] = tuple(map(str, values))
    return found


def _print_help(make: Callable[..., Recipe], given: Given, program: str) -> None:
    """Print the recipe's parameters, its stages as they would run, and how to override."""
    asked = _function(_parameters(make))
    asked.__doc__ = inspect.cleandoc(make.__doc__ or "") + _ARGUMENTS
    with contextlib.suppress(SystemExit):
        tyro.cli(asked, args=["--help"], prog=program, config=options.FLAT)
    try:
        call = _called(make, {"output": ("DIR",), **given})
        stages = described(call.recipe, min(shutil.get_terminal_size().columns, 110))
    except InputError as error:
        stages = f"  {error}"
    print("stages, in this order; an option that is not named has its command's default:")
    print(f"{stages}\n\n{_OVERRIDES}")
