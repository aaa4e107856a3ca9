"""A recipe's command line, as plain lists: parameters, stages, overrides, help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tinyqa_ray.cli import arguments, recipe_arguments
from tinyqa_ray.configs import DistillConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published
from tinyqa_ray.recipes.recipe import Recipe


def read(line: str) -> recipe_arguments.RecipeCall:
    return recipe_arguments.read(arguments.normalised(line.split()), "tinyqa distill")


def changed(line: str) -> dict[str, Any]:
    """Configs by stage."""
    return dict(read(f"--recipe tinyroberta --output out {line}").recipe.stages)


PLAIN = dict(published.tinyroberta().stages)


def test_recipe_without_overrides_is_the_function(tiny_bert: str) -> None:
    call = read("--recipe tinyroberta --output s3://bucket/run")
    assert call.recipe == published.tinyroberta()
    assert call.output == "s3://bucket/run"
    assert call.stages == tuple(PLAIN)
    quick = read(f"--recipe=quickstart --teacher {tiny_bert} --baseline True --output=out")
    assert quick.recipe == published.quickstart(tiny_bert, baseline=True)


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
    assert one == changed("--windows.window.doc-stride 64")  # as help shows it
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
        ("--recipe tinybert --output a b", "Unrecognized options: b"),
        ("--recipe tinybert --output o --baseline yes", "Unrecognized options: yes"),
        ("--recipe tinybert --output o --stage studnt", "stage 'studnt' is unknown; recipe tinybert has aug"),
        ("--recipe tinybert --output o --stage baseline", "stage 'baseline' is unknown"),
        ("--recipe tinybert --output o --leaning-rate 1", "the nearest: --learning-rate"),
        ("--recipe tinybert --output o --masked-lmm x", "the nearest: --masked-lm"),
        ("--recipe tinybert --output o --studnt.seed 1", "--studnt.seed is no option"),
        ("--recipe tinybert --output o --windows.seed 1", "--windows.seed is no option"),
        ("--recipe tinybert --output o --large-teacher t", "--large-teacher is no option of recipe tinybert"),
        ("--recipe tinybert --output o --stage student --copies 2", "--copies is for augmented, not"),
        ("--recipe tinybert --output o --stage windows --student.seed 2", "--student.seed is for student"),
        (
            "--recipe tinybert --output o --learning-rate abc",
            "stage intermediate: Error parsing --learning-r",
        ),
        ("--recipe tinybert --output o --student.learning-rate 0", "stage student: learning_rate is 0.0; it"),
        ("--recipe tinybert --output o --workers 4", "batch_size 26 does not divide by 4 workers"),
        ("--recipe tinybert --output o --seed 1 2", "stage augmented: Unrecognized options: 2"),
        ("--recipe tinybert --output o --seed", "stage augmented: Missing value for argument '--seed'"),
        ("--recipe tinybert --output o --objective labl", "invalid choice 'labl' for argument '--objective'"),
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


def test_recipe_of_ones_own_is_overridden_too() -> None:
    stage = DistillConfig(data="d", student="s", objective=("labels",))
    recipe = Recipe(name="own", stages=(("one", stage), ("two", stage)))
    found = recipe_arguments.overridden(recipe, ["two"], {"epochs": ("3",)})
    assert found.stages == (("one", stage), ("two", replace(stage, epochs=3.0)))


def test_help_lists_parameters_stages_and_how_to_override(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read("--recipe tinyroberta --help --baseline True --student.epochs 7")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for name in ("output", "stage", "data", "dev", "student", "large-teacher", "general", "baseline"):
        assert f"--{name}" in shown
    order = [
        shown.index(f" {name} options ") for name in (*list(PLAIN)[:4], "baseline", "student", "evaluation")
    ]
    assert order == sorted(order)
    text = " ".join(shown.replace("│", " ").split())
    assert "--student.temperature FLOAT" in text
    assert "(default: 1.5)" in text
    assert "(default: 7.0)" in text
    assert "--student.learning-rate 1e-4" in shown


def test_help_comes_without_a_model_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> str:
        raise InputError("no encoder given")

    monkeypatch.setattr("tinyqa_ray.models.pretrained.default_encoder", absent)
    with pytest.raises(SystemExit) as stop:
        read("--recipe mini --help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--encoder " in shown
    assert "no encoder given" in shown
