"""Old names of options: refused where they are typed, understood where a run wrote them down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray import configs
from tinyqa_ray.cli import main
from tinyqa_ray.configs.renamed import NEW_NAMES, refuse_old_options
from tinyqa_ray.core import contents, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.storage import write_json

CONFIGS = {stage_folder.stage_name(kind): kind for kind in vars(configs).values() if hasattr(kind, "RENAMED")}

DISTILL = configs.DistillConfig(
    data="d",
    student="s",
    soup_with=("t",),
    objective=("labels",),
    gradient_accumulation_steps=2,
    warmup_ratio=0.2,
)
TEACHERS = configs.TeacherLogitsConfig(
    data="d", teachers=("a", "b"), combine="apart", abstain_at_threshold=True
)
EVALUATE = configs.EvaluateConfig(data="d", model="m", ensemble_with=("n",))

# A config, and how its fields were called and written down when some had other names.
WRITTEN: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
    (
        DISTILL,
        {"also": ["t"], "accumulation": 2, "warmup": 0.2},
        ("soup_with", "gradient_accumulation_steps", "warmup_ratio"),
    ),
    (EVALUATE, {"also": ["n"]}, ("ensemble_with",)),
    (
        TEACHERS,
        {"model": ["a", "b"], "teachers": "apart", "at_thresholds": True},
        ("teachers", "combine", "abstain_at_threshold"),
    ),
]


def test_names_lead_to_fields_of_the_commands_own_config() -> None:
    assert {name: kind.RENAMED for name, kind in CONFIGS.items()} == NEW_NAMES
    for name, kind in CONFIGS.items():
        fields = {field.name for field in kind.__dataclass_fields__.values()}
        new = set(NEW_NAMES[name].values())
        assert new <= fields
        assert not (set(NEW_NAMES[name]) & fields) - new


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("distill --data d --also m", "--also is now called --soup-with"),
        ("distill --data d --warmup 0.1", "--warmup is now called --warmup-ratio"),
        ("distill --accumulation=2 --data d", "--accumulation is now called --gradient-accumulation-steps"),
        ("evaluate --also=m --data d", "--also is now called --ensemble-with"),
        *(
            (f"{command} --num-gpus-per-actor 1", "--num-gpus-per-actor is now called --num-gpus")
            for command in ("answer", "augment", "teacher-logits")
        ),
        ("serve --gpu True", "--gpu is now called --num-gpus"),
        (
            "distill --data d --num-gpus-per-evaluation 0.5",
            "--num-gpus-per-evaluation is gone: the workers measure checkpoints, on the devices they train "
            "on; leave it out",
        ),
        ("teacher-logits --at-thresholds True", "--at-thresholds is now called --abstain-at-threshold"),
        ("teacher-logits --data d --teachers apart --model a b", "--model is now called --teachers"),
    ],
)
def test_old_option_of_a_command_is_one_line_with_the_new_name(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(line.split())
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"tinyqa: {said}\n"


def test_old_option_of_a_job_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["jobs/distill.py", "--also", "m", "--data", "d", "--output", "o"])
    with pytest.raises(SystemExit) as stop:
        main.run_job(pytest.fail, configs.DistillConfig, recipes=True)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "tinyqa: --also is now called --soup-with\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--teacher-logits.model m", "--teacher-logits.model is now called --teacher-logits.teachers"),
        ("--num-gpus-per-actor 0", "--num-gpus-per-actor is now called --num-gpus"),
        ("--accumulation 2", "--accumulation is now called --gradient-accumulation-steps"),
        ("--student.also m", "--student.also is now called --student.soup-with"),
        ("--also m", "--also is now called --soup-with or --ensemble-with"),
    ],
)
def test_old_option_of_a_recipe_is_one_line_too(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(f"distill --recipe tinyroberta --output o {line}".split())
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"tinyqa: {said} (see tinyqa distill ")


def test_teachers_are_not_taken_for_what_once_had_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    refuse_old_options(["--teachers", "a", "b"], "teacher-logits")
    line = "teacher-logits --data d --output o --teachers a b --teachers apart"
    with pytest.raises(SystemExit):
        main.main(line.split())
    told = capsys.readouterr().err
    assert told.startswith("tinyqa: teachers is ('a', 'b', 'apart'); it must name models (what")
    assert "is called combine" in told
    with pytest.raises(InputError, match="is called combine"):
        configs.TeacherLogitsConfig(data="d", tokenizer="t", teachers="average")  # type: ignore[arg-type]


def test_same_word_of_another_command_passes() -> None:
    refuse_old_options(["--also", "m", "also"], "answer", "gather")


@pytest.mark.parametrize(
    ("config", "old", "new"),
    WRITTEN,
    ids=lambda each: type(each).__name__ if hasattr(each, "RENAMED") else "",
)
@pytest.mark.parametrize("file", [stage_folder.STARTED, stage_folder.SUCCESS])
def test_run_that_wrote_old_names_goes_on(
    config: Any, old: dict[str, Any], new: tuple[str, ...], file: str, tmp_path: Path
) -> None:
    inputs = ("data", *new[:1])
    hashes = {name: ", ".join(map(contents.identity, _paths(config, name))) for name in inputs}
    document = {
        "stage": stage_folder.stage_name(config),
        "fingerprint": "0123456789ab",
        "config": {k: v for k, v in stage_folder.identity_fields(config).items() if k not in new} | old,
        "inputs": {"data": hashes["data"], next(iter(old)): hashes[new[0]]},
        "report": {},
    }
    write_json(str(tmp_path / "run" / file), document)
    with stage_folder.stage(str(tmp_path / "run"), config, inputs=inputs) as stage:
        assert stage.finished == (file == stage_folder.SUCCESS)
        assert stage.fingerprint == "0123456789ab"
    assert json.loads((tmp_path / "run" / file).read_text()) == document
    document["config"] = document["config"] | {next(iter(old)): ["other"], "data": "e"}
    document["inputs"] = {}
    write_json(str(tmp_path / "run" / file), document)
    with (
        pytest.raises(InputError, match=rf"run with other settings .*\b{new[0]} \['other'\] there"),
        stage_folder.stage(str(tmp_path / "run"), config),
    ):
        pass


def _paths(config: Any, name: str) -> tuple[str, ...]:
    value = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)
