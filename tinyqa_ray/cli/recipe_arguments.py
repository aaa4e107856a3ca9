"""A recipe's command line: its parameters, which of its stages run, and the values that are others."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from tinyqa_ray.cli.arguments import FLAT, all_hints, grouped, hints, parsed, pointing_to_help
from tinyqa_ray.configs import renamed
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe, StageConfig, is_wired

_HELP = ("-h", "--help")
_USAGE = """\
usage: {program} --recipe NAME --output DIR [--stage STAGE ...] [--OPTION VALUE ...]

Run the stages of a recipe, each in a folder of its own in DIR; run again, only what is left is done.
Recipes: {names}. What one takes, its stages and their values:
{program} --recipe NAME --help"""
_ARGUMENTS = """
    output: Folder of all stages, each in one of its own; run again, only what is left is done.
    stage: Stages to run, one or several; all when not given.
"""
_OVERRIDES = """\
The options of its stages follow, with the recipe's values. Without the name of a stage, an option is for
every chosen stage that has it: --learning-rate 1e-4 --workers 2 --no-use-gpu. With the name, it is for that
stage alone: --student.learning-rate 1e-4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeCall:
    """What a command line with ``--recipe`` asks for."""

    recipe: Recipe
    """With the values that were typed."""
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
    asks = any(word in _HELP for word in arguments)
    with pointing_to_help(program):
        given = grouped([word for word in arguments if word not in _HELP])
        if "recipe" not in given and asks:
            print(_USAGE.format(program=program, names=", ".join(published.RECIPES)))
            raise SystemExit(0)
        make = _recipe(given.pop("recipe", ()))
    program = f"{program} --recipe {make.__name__}"
    if asks:
        _print_help(make, given, program)
        raise SystemExit(0)
    with pointing_to_help(program):
        return _called(make, given, program)


def _recipe(values: Sequence[str]) -> Callable[..., Recipe]:
    name, known = " ".join(values), ", ".join(published.RECIPES)
    if not name:
        raise InputError(f"--recipe is missing; give one of {known}")
    if name not in published.RECIPES:
        raise InputError(f"recipe {name!r} is unknown; it must be one of {known}")
    return published.RECIPES[name]


def _parameters(make: Callable[..., Recipe]) -> Callable[..., dict[str, Any]]:
    """A function that returns its arguments: those of a recipe, beside the folder and the stages to run."""

    def values(**arguments: Any) -> dict[str, Any]:
        return arguments

    kind = inspect.Parameter.KEYWORD_ONLY
    names: Any = tuple[str, ...] | None
    own = [
        inspect.Parameter("output", kind, annotation=str),
        inspect.Parameter("stage", kind, annotation=names, default=None),
        *(each.replace(kind=kind) for each in inspect.signature(make, eval_str=True).parameters.values()),
    ]
    values.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    values.__annotations__ = {parameter.name: parameter.annotation for parameter in own}
    values.__doc__ = inspect.cleandoc(make.__doc__ or "") + _ARGUMENTS
    return values


def _called(make: Callable[..., Recipe], given: Mapping[str, tuple[str, ...]], program: str) -> RecipeCall:
    asked = _parameters(make)
    own = {name.replace("_", "-"): hint for name, hint in asked.__annotations__.items()}
    mine = {name: each for name, each in given.items() if name.removeprefix("no-") in own}
    for name in [name for name, hint in own.items() if hint is bool and name in mine]:
        if mine[name] in (("True",), ("False",)):
            mine["no-" * (mine.pop(name) == ("False",)) + name] = ()
    values = parsed(
        lambda: tyro.cli(asked, args=_words(mine), prog=program, config=FLAT),
        one_line=True,
    )
    output, names = values.pop("output"), values.pop("stage") or ()
    recipe = make(**values)
    known = [stage for stage, _ in recipe.stages]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"stage {unknown[0]!r} is unknown; recipe {recipe.name} has {', '.join(known)}")
    chosen = tuple(stage for stage in known if stage in names or not names)
    others = {name: each for name, each in given.items() if name.removeprefix("no-") not in own}
    return RecipeCall(recipe=overridden(recipe, chosen, others, own), stages=chosen, output=output)


def overridden(
    recipe: Recipe,
    chosen: Collection[str],
    given: Mapping[str, tuple[str, ...]],
    parameters: Collection[str] = (),
) -> Recipe:
    """The recipe with other values in its chosen stages.

    Args:
        recipe: with every stage.
        chosen: names of the stages that options reach.
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


def _changed(stage: str, config: StageConfig, given: Mapping[str, tuple[str, ...]]) -> StageConfig:
    """The config of a stage with some options typed anew; the others keep the recipe's values."""
    if not given:
        return config
    # What the config filled in from other fields, it fills in again.
    anew = {name: ("None",) for name in _filled_in(config) if name not in given}
    words = _words({**anew, **given})
    try:
        return parsed(lambda: tyro.cli(type(config), args=words, default=config, config=FLAT), one_line=True)  # type: ignore[no-any-return]
    except InputError as error:
        raise InputError(f"stage {stage}: {error}") from None


def _filled_in(config: Any) -> list[str]:
    """Options that were left None and that the config filled in from others, which may change."""
    found = []
    for field in dataclasses.fields(config):
        if field.default is None and getattr(config, field.name) is not None:
            with contextlib.suppress(InputError):
                if dataclasses.replace(config, **{field.name: None}) == config:
                    found.append(field.name.replace("_", "-"))
    return found


def _stages_of(name: str, recipe: Recipe, chosen: Collection[str], parameters: Collection[str]) -> list[str]:
    """The chosen stages that an option reaches."""
    stage, _, typed = name.rpartition(".")
    stage = stage.partition(".")[0]  # of ``windows.window.doc-stride``, as help shows an option of a window
    option = typed.removeprefix("no-") if all_hints().get(typed.removeprefix("no-")) is bool else typed
    configs_by_stage = dict(recipe.stages)
    known = {each: hints(type(config)) for each, config in configs_by_stage.items()}
    having = [each for each in known if option in known[each] and stage in ("", each)]
    reached = [each for each in having if each in chosen]
    if not having:
        named = [config for each, config in configs_by_stage.items() if stage in ("", each)]
        renamed.refuse_old_options([f"--{name}"], *map(stage_folder.stage_name, named))
        names = {*parameters, *(o for each in known.values() for o in each)}
        names |= {f"{each}.{o}" for each in known for o in known[each]} if stage else set()
        near = difflib.get_close_matches(name, sorted(names), n=3)
        hint = f"the nearest: {', '.join(f'--{each}' for each in near)}" if near else "none is named like it"
        raise InputError(f"--{name} is no option of recipe {recipe.name} or its stages; {hint}")
    if not reached:
        raise InputError(f"--{name} is for {', '.join(having)}, not for a stage that --stage chose")
    wired = [each for each in reached if _is_wired(configs_by_stage[each], option)]
    if wired and len(reached) > 1:
        raise InputError(
            f"--{name} is the output of an earlier stage in {', '.join(wired)}; "
            f"say which stage is meant: --{wired[0]}.{option}"
        )
    return reached


def _is_wired(config: StageConfig, option: str) -> bool:
    field = option.replace("-", "_")
    return hasattr(config, field) and is_wired(config, field)


def _print_help(make: Callable[..., Recipe], given: Mapping[str, tuple[str, ...]], program: str) -> None:
    """Print a recipe's parameters, and the options of its stages with the values that they would run with."""
    with contextlib.suppress(SystemExit):
        tyro.cli(_parameters(make), args=["--help"], prog=program, config=FLAT)
    try:
        recipe = _called(make, {"output": ("DIR",), **given}, program).recipe
    except InputError as error:
        print(f"its stages: {error}")
        return
    print(_OVERRIDES)
    fields = [
        (
            name.replace("-", "_"),
            Annotated[type(config), tyro.conf.arg(name=name)],
            dataclasses.field(default=config),
        )
        for name, config in recipe.stages
    ]
    stages = dataclasses.make_dataclass("Stages", fields, frozen=True)
    stages.__doc__ = ""
    with contextlib.suppress(SystemExit):
        tyro.cli(stages, args=["--help"], prog=program)


def _words(options: Mapping[str, Sequence[str]]) -> list[str]:
    """Grouped options as the words of a command line."""
    return [word for name, values in options.items() for word in (f"--{name}", *values)]
