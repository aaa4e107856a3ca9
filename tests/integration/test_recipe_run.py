"""A whole small recipe through Ray: every stage, then nothing left to do."""

import json
from pathlib import Path

import pytest

from tinyqa_ray.cli import main, summary
from tinyqa_ray.configs import (
    AugmentConfig,
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    TeacherLogitsConfig,
    WindowConfig,
)
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.recipes import run
from tinyqa_ray.recipes.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

WINDOW = WindowConfig(max_seq_len=64, doc_stride=16, max_query_len=16)


def recipe(data: str, model: str, copies: int = 2) -> Recipe:
    return Recipe(
        name="tiny",
        stages=(
            ("augmented", AugmentConfig(data=data, embeddings=model, copies=copies)),
            ("logits", TeacherLogitsConfig(data="@augmented", teachers=(model,), window=WINDOW)),
            (
                "student",
                DistillConfig(
                    data="@logits",
                    student=model,
                    student_layers=(1,),
                    objective=("prediction",),
                    epochs=1,
                    batch_size=8,
                ),
            ),
            ("evaluation", EvaluateConfig(model="@student/model", data=data, window=WINDOW)),
        ),
    )


def test_recipe_runs_and_then_has_nothing_left_to_do(tiny_squad: str, tiny_bert: str, tmp_path: Path) -> None:
    output, begun = str(tmp_path / "run"), []
    first = run.run(recipe(tiny_squad, tiny_bert), output, lambda name: begun.append(name))
    assert begun == ["augmented", "logits", "student", "evaluation"]
    assert not any(result.was_finished for result in first)
    again = run.run(recipe(tiny_squad, tiny_bert), output)
    assert all(result.was_finished for result in again)
    assert [result.report for result in again] == [result.report for result in first]
    assert [result.seconds for result in again] == [result.seconds for result in first]


@pytest.mark.slow
def test_recipe_may_export_a_teacher(tiny_squad: str, tiny_bert: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra cpu")
    stages = (
        ("export", ExportConfig(model=tiny_bert, precision="fp32")),
        ("logits", TeacherLogitsConfig(data=tiny_squad, teachers=("@export",), window=WINDOW)),
    )
    tiny = Recipe(name="tiny", stages=stages)
    export, logits = run.run(tiny, str(tmp_path / "run"))
    assert summary.rows(export.report).startswith("fp32, ")
    assert logits.report.windows > 0
    assert all(result.was_finished for result in run.run(tiny, str(tmp_path / "run")))


def test_other_numbers_in_the_same_folder_are_refused(
    tiny_squad: str, tiny_bert: str, tmp_path: Path
) -> None:
    stages = recipe(tiny_squad, tiny_bert).stages[:1]
    run.run(Recipe(name="tiny", stages=stages), str(tmp_path / "run"))
    changed = recipe(tiny_squad, tiny_bert, copies=3).stages[:1]
    with pytest.raises(InputError, match="copies 2 there, 3 here"):
        run.run(Recipe(name="tiny", stages=changed), str(tmp_path / "run"))


@pytest.mark.slow
def test_chosen_stages_run_alone_once_what_they_read_is_finished(
    tiny_squad: str, tiny_bert: str, tmp_path: Path
) -> None:
    output, begun = str(tmp_path / "run"), []
    tiny = recipe(tiny_squad, tiny_bert)
    with pytest.raises(InputError, match=r"stage student reads logits, not finished in .*--stage logits$"):
        run.run(tiny, output, chosen=["augmented", "student"])
    assert not Path(output).exists()
    run.run(tiny, output, chosen=["augmented"])
    (result,) = run.run(tiny, output, lambda name: begun.append(name), chosen=["logits"])
    assert begun == ["logits"]
    assert result.name == "logits"
    assert sorted(path.name for path in Path(output).iterdir()) == ["augmented", "logits"]


@pytest.mark.slow
def test_command_runs_the_first_stages_of_a_published_recipe_offline(
    tiny_squad: str, tiny_bert: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = (
        f"distill --recipe tinybert --output {tmp_path} --data {tiny_squad} --dev {tiny_squad} "
        f"--student {tiny_bert} --teacher {tiny_bert} --masked-lm none --actors 1 --num-gpus 0 "
        "--max-seq-len 64 --doc-stride 16 --max-query-len 16"
    )
    for _ in range(2):
        main.main([*line.split(), "--copies", "2", "--stage", "augmented,windows"])
        printed = capfd.readouterr()
        augmented, windows = json.loads(printed.out)["stages"]
        assert [augmented["stage"], windows["stage"]] == ["augmented", "windows"]
        assert augmented["copies"] == 24
        assert windows["questions"] == 72
    assert "augmented: was finished" in printed.err
