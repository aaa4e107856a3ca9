"""A recipe's command line as plain lists: its parameters, its stages and their options."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest

from tinyqa_ray.cli import recipe_arguments
from tinyqa_ray.configs import DistillConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.quickstart import quickstart
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.recipes.registry import RECIPES

# Values of --teachers, as one argument with "=" or as several, each followed by another option.


def read(line: str) -> recipe_arguments.RecipeCall:
    return recipe_arguments.recipe_call(line.split(), "tinyqa distill")


def changed(line: str) -> dict[str, Any]:
    """Configs by stage."""
    return dict(read(f"--recipe tinyroberta --output out {line}").recipe.stages)


PLAIN = dict(published.tinyroberta().stages)


def test_recipe_without_overrides_is_the_function(tiny_bert: str) -> None:
    call = read("--recipe tinyroberta --output s3://bucket/run")
    assert call.recipe == published.tinyroberta()
    assert call.output == "s3://bucket/run"
    assert call.stages == tuple(PLAIN)
    quick = read(f"--recipe=quickstart --teacher {tiny_bert} --baseline --output=out")
    assert quick.recipe == quickstart(tiny_bert, baseline=True)


def test_parameters_are_the_functions() -> None:
    found = read(
        "--recipe tinybert --output o --data d,e.json --dev v.json --student s --student-layers 1,3 "
        "--teacher t --masked_lm none --general texts --general-teacher g --baseline True"
    )
    expected = published.tinybert(
        "d,e.json", "v.json", "s", (1, 3), "t", "none", general="texts", general_teacher="g", baseline=True
    )
    assert found.recipe == expected


def test_override_reaches_every_stage_that_has_the_option() -> None:
    found = changed("--learning-rate 1e-4 --batch_size=48 --workers 2 --use-gpu False --actors 2 --copies 2")
    taught = {"learning_rate": 1e-4, "batch_size": 48, "workers": 2, "use_gpu": False}
    expected = {
        "augmented": replace(PLAIN["augmented"], actors=2, copies=2),
        "windows": replace(PLAIN["windows"], actors=2),
        "intermediate": replace(PLAIN["intermediate"], **taught),
        "teacher-logits": replace(PLAIN["teacher-logits"], actors=2),
        "student": replace(PLAIN["student"], **taught),
        "evaluation": PLAIN["evaluation"],
    }
    assert found == expected


def test_window_is_overridden_as_a_whole() -> None:
    found = changed("--max-seq-len 64 --doc-stride 16 --max-query-len 16")
    window = WindowConfig(max_seq_len=64, doc_stride=16, max_query_len=16)
    assert [found[name].window for name in ("windows", "teacher-logits", "evaluation")] == [window] * 3
    one = changed("--windows.doc-stride 64")
    assert one == {**PLAIN, "windows": replace(PLAIN["windows"], window=WindowConfig(doc_stride=64))}


def test_one_stage_alone_goes_before_all() -> None:
    found = changed("--student.learning-rate 1e-4 --learning-rate 1e-5")
    assert found["student"] == replace(PLAIN["student"], learning_rate=1e-4)
    assert found["intermediate"] == replace(PLAIN["intermediate"], learning_rate=1e-5)


def test_several_values_and_none() -> None:
    found = changed("--teacher-logits.teachers a b,c --student.dev None --attention-dropout 0")
    assert found["teacher-logits"].teachers == ("a", "b,c")
    assert found["student"].dev is None
    assert found["intermediate"].attention_dropout == 0.0


def test_what_a_config_fills_in_follows_the_override() -> None:
    found = changed(
        "--stage student --objective intermediate,prediction --student.teacher t --student.batch-size 8"
    )
    assert found["student"].objective_weights == (1.0, 1.0)
    weighted = changed("--student.objective labels,prediction --student.objective-weights 1,0.5")
    assert weighted["student"].objective_weights == (1.0, 0.5)
    haystack = changed("--style haystack")["augmented"]
    assert (haystack.candidates, haystack.masked_share) == (20, 0.0)


def test_chosen_stages_alone_run_and_change() -> None:
    call = read("--recipe tinyroberta --output o --stage student,intermediate --seed 7")
    assert call.stages == ("intermediate", "student")
    found = dict(call.recipe.stages)
    assert {name: config.seed for name, config in found.items() if hasattr(config, "seed")} == {
        "augmented": 42,
        "intermediate": 7,
        "student": 7,
    }


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("--recipe tinyrobert --output o", "recipe 'tinyrobert' is unknown; it must be one of tinyroberta,"),
        ("--output o --recipe", "--recipe is missing; give one of tinyroberta, tinybert, quickstart"),
        ("--output o", "--recipe is missing; give one of tinyroberta, tinybert, quickstart"),
        ("--recipe tinybert", "Missing from tinyqa distill --recipe tinybert: --output STR"),
        ("--recipe tinybert --output a b", "--output takes one value; given: a b"),
        (
            "--recipe tinybert --output o --baseline yes",
            "--baseline takes no value; given: yes; say --baseline or --no-baseline",
        ),
        (
            "--recipe tinybert --output o --stage studnt",
            "invalid choice 'studnt' for argument '--stage'. Expected one of ('aug",
        ),
        ("--recipe tinybert --output o --stage baseline", "invalid choice 'baseline' for argument '--stage'"),
        ("--recipe tinybert --output o --leaning-rate 1", "the nearest: --learning-rate"),
        ("--recipe tinybert --output o --masked-lmm x", "the nearest: --masked-lm"),
        ("--recipe tinybert --output o --studnt.seed 1", "--studnt.seed is no option"),
        ("--recipe tinybert --output o --windows.seed 1", "--windows.seed is no option"),
        ("--recipe tinybert --output o --large-teacher t", "--large-teacher is no option of recipe tinybert"),
        ("--recipe tinybert --output o --stage student --copies 2", "--copies is for augmented, not"),
        ("--recipe tinybert --output o --stage windows --student.seed 2", "--student.seed is for student"),
        (
            "--recipe tinybert --output o --learning-rate abc",
            "Error parsing --intermediate.learning-rate: could not convert string to float: 'abc'",
        ),
        ("--recipe tinybert --output o --student.learning-rate 0", "stage student: learning_rate is 0.0; it"),
        ("--recipe tinybert --output o --workers 4", "batch_size 26 does not divide by 4 workers"),
        ("--recipe tinybert --output o --seed 1 2", "--seed takes one value; given: 1 2"),
        ("--recipe tinybert --output o --seed", "--seed takes one value; given: none"),
        (
            "--recipe tinybert --output o --objective labl",
            "invalid choice 'labl' for argument '--intermediate.objective'",
        ),
        ("--recipe tinybert --output o --windows.data @student", "stage windows reads @student, which no e"),
    ],
)
def test_mistake_is_one_line_that_names_it(line: str, complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(line)
    message = str(refusal.value)
    assert complaint in message
    assert "\n" not in message
    assert "tinyqa distill" in message
    assert message.endswith("--help)")


def test_output_of_an_earlier_stage_is_replaced_in_a_named_stage_only() -> None:
    wired = r"--model is the output .* in student-evaluation, answers; .*: --student-evaluation.model"
    with pytest.raises(InputError, match=wired):
        read("--recipe quickstart --output o --model x")
    assert changed("--evaluation.model x")["evaluation"].model == "x"
    assert changed("--stage evaluation --model x")["evaluation"].model == "x"


def test_recipe_of_ones_own_is_overridden_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = DistillConfig(data="d", student="s", objective=("labels",))

    def own() -> Recipe:
        return Recipe(name="own", stages=(("one", stage), ("two", stage)))

    monkeypatch.setitem(RECIPES, "own", own)
    found = read("--recipe own --output o --stage two --epochs 3")
    assert found.recipe.stages == (("one", stage), ("two", replace(stage, epochs=3.0)))
    assert found.stages == ("two",)


def test_help_shows_parameters_and_the_stages_as_they_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--recipe tinyroberta --help --baseline True --student.epochs 7")
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("output", "stage", "data", "dev", "student", "large-teacher", "general", "baseline"):
        assert f"--{name}" in shown
    stages = (*list(PLAIN)[:4], "baseline", "student", "evaluation")
    order = [shown.index(f" {name} options ") for name in stages]
    assert order == sorted(order)
    assert "--student.temperature FLOAT (default: 1.5)" in shown
    assert "--student.epochs FLOAT (default: 7" in shown
    assert "--baseline.epochs FLOAT (default: 4" in shown
    assert "--evaluation.model STR (default: @student/model)" in shown
    assert "--windows.doc-stride INT (default: 128)" in shown
    assert "--student.learning-rate 1e-4" in shown


def test_help_comes_without_a_model_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> str:
        raise InputError("no encoder given")

    monkeypatch.setattr("tinyqa_ray.models.pretrained.default_encoder", absent)
    with pytest.raises(SystemExit) as stop:
        read("--recipe mini --help --student.epochs 7")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--encoder " in shown
    assert "no encoder given" in shown
    assert "--learning-rate 1e-4" in shown


def test_help_of_every_recipe_says_what_each_parameter_means(capsys: pytest.CaptureFixture[str]) -> None:
    for name, make in RECIPES.items():
        with pytest.raises(SystemExit):
            read(f"--recipe {name} --help-verbose --output o")
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert "Folder of all stages, each in one of its own" in shown
        for parameter in inspect.signature(make).parameters:
            assert f"--{parameter.replace('_', '-')}" in shown
