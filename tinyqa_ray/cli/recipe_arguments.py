"""Reads the command line of a recipe: its parameters, then the options of all its stages.

A recipe's stages are one nested dataclass for tyro, with the recipe's values as defaults. What tyro lacks is
an option given once for all stages that have it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NewType

import tyro

from tinyqa_ray import configs
from tinyqa_ray.cli.arguments import Given, grouped, options, pointing_to_help, refused_in_one_line, spelt
from tinyqa_ray.configs import renamed
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes.recipe import Recipe, is_wired
from tinyqa_ray.recipes.registry import RECIPES

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
    known = ", ".join(RECIPES)
    with pointing_to_help(program):
        given = grouped([word for word in words if word not in _HELP])
        if "--recipe" not in given and asked:
            print(_USAGE.format(program=program, names=known))
            raise SystemExit(0)
        name = " ".join(given.pop("--recipe", [[]])[-1])
        if not name:
            raise InputError(f"--recipe is missing; give one of {known}")
        if name not in RECIPES:
            raise InputError(f"recipe {name!r} is unknown; it must be one of {known}")
    program = f"{program} --recipe {name}"
    with pointing_to_help(program):
        return _called(RECIPES[name], given, program, asked)


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
