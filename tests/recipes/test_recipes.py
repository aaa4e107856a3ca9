from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from tinyqa_ray.cli.recipe_arguments import recipe_call
from tinyqa_ray.configs import AugmentConfig, DistillConfig, EvaluateConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import bundled, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import published, run
from tinyqa_ray.recipes import recipe as wiring
from tinyqa_ray.recipes.mini import mini
from tinyqa_ray.recipes.recipe import Recipe
from tinyqa_ray.recipes.registry import RECIPES as BY_NAME

RECIPES = [published.tinyroberta(), published.tinybert()]
EVERYTHING = [
    make(student="s", student_layers=(1, 3), general="texts", baseline=True)
    for make in (published.tinyroberta, published.tinybert)
]


@pytest.fixture
def quickstart(tiny_bert: str) -> Recipe:
    return BY_NAME["quickstart"](tiny_bert)


def stages(recipe: Recipe) -> dict[str, Any]:
    return dict(recipe.stages)


def has(config: Any, **expected: Any) -> None:
    assert {name: getattr(config, name) for name in expected} == expected


def test_tinyroberta_has_the_numbers_of_its_model_card() -> None:
    found = stages(published.tinyroberta())
    has(found["augmented"], copies=20, candidates=20, data="rajpurkar/squad_v2:train")
    has(
        found["intermediate"],
        objective=("intermediate",),
        data="@windows",
        student="deepset/tinyroberta-6l-768d",
        teacher="deepset/roberta-base-squad2",
    )
    has(found["teacher-logits"], teachers=("deepset/roberta-large-squad2",), data="rajpurkar/squad_v2:train")
    has(
        found["student"],
        objective=("prediction",),
        student="@intermediate/model",
        batch_size=96,
        epochs=4,
        learning_rate=3e-5,
        warmup_ratio=0.2,
        distillation_weight=0.75,
        temperature=1.5,
        head_dropout=0.1,
    )
    assert found["intermediate"].workers == found["student"].workers == 4


def test_tinybert_has_the_numbers_of_its_model_card() -> None:
    found = stages(published.tinybert())
    teacher = "deepset/bert-base-uncased-squad2"
    has(found["augmented"], copies=20, candidates=20)
    shared = {"batch_size": 26, "epochs": 5, "temperature": 1.0}
    has(
        found["intermediate"],
        objective=("intermediate",),
        student="huawei-noah/TinyBERT_General_6L_768D",
        teacher=teacher,
        learning_rate=5e-5,
        head_dropout=0.1,
        **shared,
    )
    has(found["teacher-logits"], teachers=(teacher,))
    has(found["student"], objective=("prediction",), learning_rate=3e-5, distillation_weight=1.0, **shared)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_published_recipes_cut_the_published_windows_and_measure_on_dev(recipe: Recipe) -> None:
    expected = WindowConfig(max_seq_len=384, doc_stride=128, max_query_len=64)
    configs = [config for _, config in recipe.stages]
    windowed = [c for c in configs if isinstance(c, TeacherLogitsConfig | EvaluateConfig)]
    assert {config.window for config in windowed} == {expected}
    assert configs[-1] == EvaluateConfig(model="@student/model", data="rajpurkar/squad_v2:validation")


def test_paths_of_earlier_stages_become_folders(quickstart: Recipe) -> None:
    for recipe in [quickstart, *RECIPES, *EVERYTHING]:
        names = [name for name, _ in recipe.stages]
        assert len(set(names)) == len(names)
        for name, config in recipe.stages:
            assert set(wiring.references(config)) <= set(names[: names.index(name)])
            found = wiring.resolved(config, "s3://bucket/run")
            assert wiring.references(found) == []
            for reference in wiring.references(config):
                assert f"s3://bucket/run/{reference}" in str(found)
    student = wiring.resolved(stages(published.tinybert())["student"], "out")
    has(student, data="out/teacher-logits", student="out/intermediate/model")


def test_quickstart_makes_a_student_of_half_the_layers(quickstart: Recipe, tiny_bert: str) -> None:
    found = stages(quickstart)
    has(found["student"], student_layers=(1,), teacher="@teacher/model")
    has(found["student"], objective=("intermediate", "prediction"))
    has(found["teacher"], student=tiny_bert, objective=("labels",))


def test_quickstart_takes_other_data_and_layers(tiny_bert: str) -> None:
    recipe = BY_NAME["quickstart"](tiny_bert, "train.json", "dev.json", student_layers=(0,), baseline=True)
    found = stages(recipe)
    assert found["windows"].data == found["augmented"].data == "train.json"
    assert found["student-evaluation"].data == found["student"].dev == "dev.json"
    has(found["student"], student_layers=(0,))
    has(found["baseline"], student="@teacher/model", student_layers=(0,), objective=("labels",))


@pytest.mark.parametrize("make", [published.tinyroberta, published.tinybert])
def test_published_recipes_run_offline_on_folders(make: Any) -> None:
    """Every model and file is what the caller gave, or another stage's."""
    given = {"data": "d", "dev": "v", "student": "s", "teacher": "t"}
    if make is published.tinyroberta:
        given["large_teacher"] = "l"
    recipe = make(masked_lm="none", **given)
    texts = ("data", "tokenizer", "model", "student", "teacher", "teachers", "masked_lm", "embeddings", "dev")
    paths = {getattr(config, name, None) for _, config in recipe.stages for name in texts}
    flat = {each for path in paths for each in (path if isinstance(path, tuple) else (path,))}
    assert {each for each in flat if each and not each.startswith("@")} == set(given.values())
    assert stages(recipe)["augmented"].embeddings == "s"


@pytest.mark.parametrize("recipe", [*RECIPES, *EVERYTHING], ids=lambda recipe: recipe.name)
def test_stages_that_teach_the_head_are_measured(recipe: Recipe) -> None:
    trained = {name: config for name, config in recipe.stages if isinstance(config, DistillConfig)}
    measured = {name for name, config in trained.items() if config.dev == "rajpurkar/squad_v2:validation"}
    assert measured == trained.keys() & {"baseline", "student"}


@pytest.mark.parametrize(
    ("recipe", "plain"), zip(EVERYTHING, RECIPES, strict=True), ids=lambda recipe: recipe.name
)
def test_general_distillation_comes_first_on_plain_text(recipe: Recipe, plain: Recipe) -> None:
    names = [name for name, _ in recipe.stages]
    assert names[:2] == ["general-windows", "general"]
    assert [name for name in names[2:] if name != "baseline"] == [name for name, _ in plain.stages]
    found = stages(recipe)
    has(found["general-windows"], data="texts", tokenizer="s", teachers=())
    has(found["general"], objective=("intermediate",), student="s", student_layers=(1, 3), dev=None)
    assert found["general"].teacher in ("FacebookAI/roberta-base", "google-bert/bert-base-uncased")
    has(found["intermediate"], student="@general/model", student_layers=None)


@pytest.mark.parametrize("make", [published.tinyroberta, published.tinybert])
def test_layers_are_cut_once_where_training_begins(make: Any) -> None:
    trained = {
        name: config.student_layers
        for name, config in make(student_layers=(1, 3), baseline=True).stages
        if isinstance(config, DistillConfig)
    }
    assert trained == {"intermediate": (1, 3), "baseline": (1, 3), "student": None}


@pytest.mark.parametrize("recipe", EVERYTHING, ids=lambda recipe: recipe.name)
def test_baseline_is_the_student_taught_by_labels_alone(recipe: Recipe) -> None:
    found = stages(recipe)
    student, baseline = found["student"], found["baseline"]
    has(baseline, objective=("labels",), student=found["intermediate"].student, baseline=None)
    assert student.baseline == "@baseline/model"
    # What else could make a difference is the same.
    names = (
        "data",
        "epochs",
        "batch_size",
        "learning_rate",
        "warmup_ratio",
        "head_dropout",
        "seed",
        "workers",
    )
    has(baseline, **{name: getattr(student, name) for name in names})
    assert "baseline" in wiring.references(student)


def test_no_stage_of_a_baseline_unless_asked(quickstart: Recipe) -> None:
    for recipe in [quickstart, *RECIPES]:
        assert "baseline" not in stages(recipe)
        has(stages(recipe)["student"], baseline=None)


def test_mini_student_learns_from_its_teacher_and_nobody_from_what_is_held_out(tiny_bert: str) -> None:
    recipe = mini(
        "train.json",
        "dev.json",
        more=("more.json",),
        documents="d.jsonl",
        questions="q.jsonl",
        hold_out=("Owls",),
        encoder="large",
        start=tiny_bert,
        copies=3,
        baseline=True,
    )
    found = stages(recipe)
    has(found["gathered"], data=("train.json", "more.json"), hold_out=("Owls",), documents=None)
    for name in ("first-asked", "asked"):
        has(found[name], data=("train.json", "more.json"), documents="d.jsonl", questions="q.jsonl")
        has(found[name], hold_out=("Owls",), other_paragraph="most-similar")
    has(found["rewritten"], data=("train.json",), hold_out=("Owls",), documents=None)
    assert all(found[name].rewritten > 0 for name in ("rewritten", "asked"))
    has(found["augmented"], data="@asked", copies=3, embeddings=tiny_bert)
    # Each reads windows of its own vocabulary, and what has no labels is learned from logits alone.
    has(found["windows"], data="@gathered", tokenizer="large", teachers=())
    has(found["first-teacher"], data="@windows", student="large", objective=("labels",), dev=None)
    has(found["rewritten-windows"], data="@rewritten", tokenizer="large", teachers=())
    has(found["teacher"], data="@rewritten-windows", student="@first-teacher/model", objective=("labels",))
    has(found["first-logits"], data="@first-asked", tokenizer=tiny_bert, teachers=("@first-teacher/model",))
    has(found["teacher-logits"], data="@augmented", tokenizer=tiny_bert, teachers=("@teacher/model",))
    has(found["gathered-windows"], data="@gathered", tokenizer=tiny_bert, teachers=())
    has(found["baseline"], data="@gathered-windows", objective=("labels",), student=tiny_bert)
    has(found["first-student"], data="@first-logits", student=tiny_bert, objective=("prediction",))
    has(found["second-student"], data="@teacher-logits", student="@first-student/model", publish="best")
    for name in ("first-student", "second-student"):
        has(found[name], distillation_weight=1.0, baseline=None)
    has(found["student-windows"], data="@rewritten", tokenizer=tiny_bert, teachers=())
    for name, origin in (("early-student", "first-student"), ("late-student", "second-student")):
        has(found[name], data="@student-windows", objective=("labels",), student=f"@{origin}/model")
    has(found["late-student"], baseline="@baseline/model")
    has(found["student"], model="@late-student/model", soup_with=("@early-student/model",))
    # Thresholds are fitted before they are used.
    for teacher, logits in (("first-teacher", "first-logits"), ("teacher", "teacher-logits")):
        assert list(found).index(f"{teacher}-evaluation") < list(found).index(logits)
        has(found[logits], abstain_at_threshold=True, settings=(f"@{teacher}-evaluation",))
    for name in ("first-teacher", "teacher", "baseline", "student"):
        has(found[f"{name}-evaluation"], data="dev.json", fit_threshold="@gathered/held-out.json")
    has(found["student-fp16"], model="@student", settings="@student-evaluation", precision="fp16")


def test_mini_without_more_has_no_more_stages(tiny_bert: str) -> None:
    found = stages(mini("train.json", "dev.json", start=tiny_bert))
    assert not found.keys() & {"augmented", "baseline", "baseline-evaluation", "gathered-windows"}
    has(found["teacher-logits"], data="@asked", abstain_at_threshold=False, settings=())
    # What fits nothing writes no settings.
    has(found["student-evaluation"], fit_threshold=None)
    has(found["student-fp16"], settings=None)


def test_mini_learns_from_no_text_that_it_is_measured_on(tiny_bert: str) -> None:
    found = stages(mini("train.json", "dev.json", start=tiny_bert, checker="some/model"))
    for name in ("gathered", "first-asked", "rewritten", "asked"):
        has(found[name], apart_from=("dev.json",))
    for name in ("gathered", "first-asked", "asked"):
        has(found[name], teacher="some/model")


def test_mini_teacher_answers_as_an_export_if_wanted(tiny_bert: str) -> None:
    found = stages(mini("train.json", "dev.json", start=tiny_bert, exported=True))
    for teacher, logits in (("first-teacher", "first-logits"), ("teacher", "teacher-logits")):
        has(found[f"{teacher}-export"], model=f"@{teacher}/model", precision="bf16")
        has(found[logits], teachers=(f"@{teacher}-export",))
        has(found[f"{teacher}-evaluation"], model=f"@{teacher}-export")


def test_quickstart_distils_the_shipped_model(quickstart: Recipe) -> None:
    found = stages(BY_NAME["quickstart"]())
    assert not found.keys() & {"windows", "teacher"}
    has(found["teacher-logits"], teachers=(bundled.MODEL,), data="@augmented")
    has(found["student"], student=bundled.MODEL, student_layers=(0, 2, 3, 4), objective=("prediction",))
    # Its own threshold and scores are stored with it.
    has(found["teacher-evaluation"], model=bundled.MODEL, fit_threshold=None, fit_temperature=None)
    fitted = {"fit_threshold": bundled.asset("squad2_calibration.json")}
    fitted["fit_temperature"] = fitted["fit_threshold"]
    has(found["student-evaluation"], **fitted)
    has(stages(quickstart)["teacher-evaluation"], model="@teacher/model", **fitted)


def test_tuples_and_none_are_no_references() -> None:
    config = DistillConfig(
        data="@windows",
        student="@a/model",
        objective=("labels", "prediction"),
        teacher=None,
        dev="dev.json",
        baseline="@b",
    )
    assert sorted(wiring.references(config)) == ["a", "b", "windows"]
    found = wiring.resolved(config, "out")
    has(found, data="out/windows", student="out/a/model", baseline="out/b", objective=config.objective)


def test_reference_to_no_earlier_stage_is_refused() -> None:
    windows = ("windows", TeacherLogitsConfig(data="@augmented", tokenizer="t"))
    augmented = ("augmented", AugmentConfig(data="d", embeddings="e"))
    Recipe(name="right", stages=(augmented, windows))
    with pytest.raises(InputError, match=r"recipe wrong: stage windows reads @augmented, which no earlier"):
        Recipe(name="wrong", stages=(windows, augmented))


def test_fingerprint_is_stable_and_tells_every_number() -> None:
    config = stages(published.tinyroberta())["student"]
    again = stages(published.tinyroberta())["student"]
    assert stage_folder.fingerprint(config) == stage_folder.fingerprint(again)
    changes: list[dict[str, Any]] = [
        {"learning_rate": 3.1e-5},
        {"epochs": 5},
        {"seed": 43},
        {"temperature": 1.0},
        {"student_layers": (0, 1)},
    ]
    others = {stage_folder.fingerprint(replace(config, **change)) for change in changes}
    assert len(others | {stage_folder.fingerprint(config)}) == len(changes) + 1
    assert stage_folder.fingerprint(
        replace(config, workers=2, threads=3, use_gpu=False)
    ) == stage_folder.fingerprint(config)


@pytest.mark.parametrize("pickled", ["student", "teacher"])
def test_model_with_pickled_weights_only_is_refused_before_the_first_stage(
    pickled: str, tiny_bert: str, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    models = {"student": tiny_bert, "teacher": tiny_bert, pickled: str(folder)}
    recipe = published.tinybert("train.json", "dev.json", masked_lm="none", **models)
    begun: list[str] = []
    with pytest.raises(InputError, match=r"holds only pytorch_model.bin.*tinyqa convert --model .*pickled"):
        run.run(recipe, str(tmp_path / "out"), begun.append)  # type: ignore[arg-type]
    assert begun == []


class _BegunError(Exception):
    """The first stage of a recipe begins."""


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a recipe until its first stage begins, which raises ``_BegunError``."""
    monkeypatch.setattr(run, "connected", contextlib.nullcontext)

    def start(recipe: Recipe, output: Path, **options: Any) -> None:
        def begun(name: str) -> None:
            raise _BegunError(name)

        run.run(recipe, str(output), begun, **options)

    return start


@pytest.mark.parametrize("make", [published.tinyroberta, published.tinybert])
def test_teacher_of_layers_that_reads_other_tokens_is_refused_before_the_first_stage(
    make: Any, tiny_bert: str, tiny_roberta: str, tmp_path: Path, begins: Callable[..., None]
) -> None:
    given = {"data": "d.json", "dev": "v.json", "masked_lm": "none", "student": tiny_bert}
    if make is published.tinyroberta:
        given["large_teacher"] = tiny_roberta
    recipe = make(**given, teacher=tiny_roberta)
    with pytest.raises(
        InputError, match=r"^stage intermediate: .*token by token; or let it teach"
    ) as refused:
        begins(recipe, tmp_path / "out")
    option = f"--teacher-logits.teachers {tiny_roberta}"
    assert str(refused.value).endswith(f"({option})")
    # What it says is taken by the command line, and passes.
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    line = f"--recipe {recipe.name} --output out --teacher {tiny_bert} {option}".split()
    mended = recipe_call([*line, *words], "tinyqa distill").recipe
    assert stages(mended)["teacher-logits"].teachers == (tiny_roberta,)
    with pytest.raises(_BegunError, match="augmented"):
        begins(mended, tmp_path / "out")


def test_teachers_of_later_rounds_are_compared_by_what_their_stages_start_from(
    tiny_bert: str, tiny_roberta: str, tmp_path: Path, begins: Callable[..., None]
) -> None:
    windows = ("windows", TeacherLogitsConfig(data="d.json", tokenizer=tiny_bert))
    labels = DistillConfig(data="@windows", student=tiny_bert, objective=("labels",))
    layers = replace(labels, objective=("intermediate",), student="@student/model", teacher="@teacher/model")

    def recipe(teacher: str) -> Recipe:
        made = ("student", labels), ("teacher", replace(labels, student=teacher))
        return Recipe(name="two", stages=(windows, *made, ("again", layers)))

    with pytest.raises(_BegunError):
        begins(recipe(tiny_bert), tmp_path / "out")
    with pytest.raises(InputError, match=r"^stage again: .*token by token$"):
        begins(recipe(tiny_roberta), tmp_path / "out")
    # Stages that are not run are not looked at.
    with pytest.raises(_BegunError):
        begins(recipe(tiny_roberta), tmp_path / "out", chosen=["windows", "student"])


def test_encoder_of_other_tokens_is_not_said_to_predict(
    tiny_bert: str, tiny_roberta: str, tmp_path: Path, begins: Callable[..., None]
) -> None:
    encoder = tiny.write_sentence_encoder(tiny_roberta, tmp_path / "encoder")
    models = {"student": tiny_bert, "teacher": tiny_bert, "general_teacher": str(encoder)}
    recipe = published.tinybert("d.json", "v.json", masked_lm="none", general="texts", **models)
    with pytest.raises(InputError, match=r"^stage general: .*token by token$"):
        begins(recipe, tmp_path / "out")
