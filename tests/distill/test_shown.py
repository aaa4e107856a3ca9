from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel

from tinyqa_ray.configs import AugmentConfig, DistillConfig, GatherConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import stage_folder, storage, version
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import shown
from tinyqa_ray.distill.page import TrainingPage
from tinyqa_ray.distill.report import DistillReport
from tinyqa_ray.distill.shown import _others, _sources, _teachers, show, trackers
from tinyqa_ray.distill.trackers import TensorBoard
from tinyqa_ray.models import pretrained
from tinyqa_ray.teacher_logits import TeacherLogitsReport

HARDWARE: dict[str, Any] = {"device": "a machine of rooms, 3 threads", "workers": 2}
REPORT = TeacherLogitsReport(paragraphs=1, questions=1, windows=9, tokens=9, answerable_windows=0)


def windows(folder: Path, data: str, *teachers: str) -> str:
    """A finished teacher-logits stage without its windows."""
    config = TeacherLogitsConfig(
        data=data, tokenizer="t", teachers=teachers, window=WindowConfig(max_seq_len=77, doc_stride=8)
    )
    with stage_folder.stage(str(folder), config) as stage:
        stage.publish(REPORT)
    return str(folder)


def figures(step: int, f1: float) -> dict[str, Any]:
    return {"step": step, "exact": f1 - 5, "f1": f1, "best_f1": f1 + 1, "no_ans_f1": None, "questions": 24}


def row(step: int) -> dict[str, Any]:
    speed = {"samples_per_s": 9.0, "tokens_per_s": 900.0}
    loss = {"loss": 9.0 / step, "label": 4.0 / step, "prediction": 5.0 / step}
    return {"step": step, "steps": 30, **loss, "grad_norm": 1.0, "learning_rate": 3e-5, **speed}


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    """A run on windows with the logits of a teacher that is gone, measured on questions that are gone."""
    data = windows(tmp_path / "windows", "squad_v2:train", str(tmp_path / "big-teacher" / "model"))
    return DistillConfig(
        data=data,
        student="some/encoder",
        objective=("prediction",),
        distillation_weight=0.5,
        dev=str(tmp_path / "dev-v2.0.json"),
    )


@pytest.fixture
def stage(config: DistillConfig, tmp_path: Path, tiny_bert: str) -> stage_folder.Stage:
    """A run that ended at step 30, measured at each tenth, best at 20."""
    made = stage_folder.Stage(str(tmp_path / "runs" / "my-student"), config, {})
    rows = "".join(json.dumps(row(step)) + "\n" for step in range(5, 31, 5))
    storage.write_atomic(made.path("metrics.jsonl"), rows.encode())
    for step, f1 in ((10, 50.0), (20, 71.5), (30, 70.25)):
        storage.write_json(made.path("dev", f"step-{step:09d}.json"), figures(step, f1))
    shutil.copytree(tiny_bert, made.path("model"))
    return made


def report(published_step: int = 30) -> DistillReport:
    return DistillReport(
        windows=9, steps=30, loss=0.3, parameters=4567, model_bytes=1, published_step=published_step
    )


def tell(stage: stage_folder.Stage, name: str, f1: float) -> None:
    """The figures of another model, as an earlier attempt measured them."""
    written = {"model": name, **figures(0, f1), "parameters": 999_999}
    del written["step"]
    storage.write_json(stage.path("dev", f"{name}.json"), written)


def page(stage: stage_folder.Stage) -> str:
    return Path(stage.path("report.html")).read_text()


def card(stage: stage_folder.Stage) -> str:
    return Path(stage.path("model", "README.md")).read_text()


def front_matter(stage: stage_folder.Stage) -> Any:
    """What the hub reads of the card."""
    return ModelCard(card(stage)).data


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[TrainingPage]:
    """The pages that would have been drawn."""
    found: list[TrainingPage] = []

    def keep(page: TrainingPage) -> str:
        found.append(page)
        return "a page"

    monkeypatch.setattr(shown, "training_html", keep)
    return found


def f1(page: TrainingPage) -> dict[str, float | None]:
    """F1 by model of the page's table."""
    return {model.name: model.figures.get("f1") for model in page.models}


def test_finished_run_has_a_page_of_its_curves_and_models(
    config: DistillConfig, stage: stage_folder.Stage
) -> None:
    tell(stage, "teacher-0", 80.0)
    tell(stage, "baseline", 66.5)
    show(replace(config, baseline="base/line"), stage, report(), HARDWARE)
    text = page(stage)
    assert "my-student: prediction" in text
    for drawn in ("Label loss", "Prediction loss", "Learning rate", "F1, EM, Best F1 on dev"):
        assert f"{drawn} over steps" in text
    for told in ("student", "student, best (step 20)", "teacher big-teacher", "baseline base/line"):
        assert f">{told}<" in text
    assert "student, last" not in text, "the student published is that of the last step"
    for figure in ("70.2", "71.5", "80.0", "66.5", "87.8 %", "4,567", "999,999"):
        assert f">{figure}<" in text
    assert HARDWARE["device"] in text
    assert version.versions()["torch"] in text
    assert "distillation_weight" in text


def test_finished_run_has_a_card_with_figures_recipe_and_sources(
    config: DistillConfig, stage: stage_folder.Stage, pages: list[TrainingPage], tmp_path: Path
) -> None:
    tell(stage, "teacher-0", 80.0)
    show(config, stage, report(), HARDWARE)
    data = front_matter(stage)
    assert {result.metric_name: result.metric_value for result in data.eval_results} == {
        "Exact Match": 65.25,
        "F1": 70.25,
    }
    assert (data.base_model, data.datasets) == ("some/encoder", ["squad_v2"])
    text = card(stage)
    for told in (
        "# my-student",
        "- Learned from: `squad_v2:train`",
        "- Teachers: `big-teacher`",
        "- Measured on: `dev-v2.0.json`",
        "windows of up to 77 tokens",
        "| workers | 2 |",
        "| distillation_weight | 0.5 |",
        "| teacher big-teacher | 75.0 | 80.0 |",
        f"| torch | {version.versions()['torch']} |",
    ):
        assert told in text
    assert str(tmp_path) not in text
    pretrained.load_qa_model(stage.path("model"))  # a model's folder still


def test_best_student_is_shown_beside_the_last_when_it_is_published(
    config: DistillConfig, stage: stage_folder.Stage, pages: list[TrainingPage]
) -> None:
    show(replace(config, publish="best"), stage, report(published_step=20), HARDWARE)
    assert f1(pages[0]) == {"student": 71.5, "student, last": 70.25}
    assert {result.metric_value for result in front_matter(stage).eval_results} == {66.5, 71.5}
    assert "flatters it too" in card(stage)


def test_last_student_that_is_the_best_is_shown_once(
    config: DistillConfig, stage: stage_folder.Stage, pages: list[TrainingPage]
) -> None:
    storage.write_json(stage.path("dev", "step-000000030.json"), figures(30, 75.0))
    show(config, stage, report(), HARDWARE)
    assert f1(pages[0]) == {"student": 75.0}


def test_of_equal_students_the_later_is_the_best_as_ray_keeps_it(
    config: DistillConfig, stage: stage_folder.Stage, pages: list[TrainingPage]
) -> None:
    storage.write_json(stage.path("dev", "step-000000010.json"), figures(10, 71.5))
    show(config, stage, report(), HARDWARE)
    assert f1(pages[0]) == {"student": 70.25, "student, best (step 20)": 71.5}


def test_run_without_dev_shows_no_figures(
    config: DistillConfig, stage: stage_folder.Stage, pages: list[TrainingPage]
) -> None:
    storage.delete_folder(stage.path("dev"))
    show(replace(config, dev=None), stage, report(), HARDWARE)
    assert (len(pages[0].rows), pages[0].dev) == (6, [])
    assert f1(pages[0]) == {"student": None}
    assert pages[0].models[0].parameters == 4567
    assert "Not measured" in card(stage)
    assert "model-index" not in card(stage)


def test_teacher_that_is_gone_is_left_out_and_others_are_measured_once(
    config: DistillConfig,
    stage: stage_folder.Stage,
    pages: list[TrainingPage],
    tiny_bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = windows(tmp_path / "two", "d.json", str(tmp_path / "gone"), tiny_bert)
    measured: list[str] = []

    def measure(config: DistillConfig, model: str) -> dict[str, Any]:
        measured.append(model)
        return {**figures(0, 79.5), "parameters": 321}

    monkeypatch.setattr(shown, "_measured", measure)
    compared = replace(config, data=data, baseline=str(tmp_path / "gone-too"))
    for _ in range(2):
        show(compared, stage, report(), HARDWARE)
    assert measured == [tiny_bert]
    for page in pages:
        assert f1(page) == {"student": 70.25, "student, best (step 20)": 71.5, "teacher bert": 79.5}
        assert (page.models[-1].role, page.models[-1].parameters) == ("teacher", 321)
        assert [row["step"] for row in page.dev] == [10, 20, 30], "a teacher is no checkpoint"


def test_export_that_taught_is_measured_like_a_model(
    config: DistillConfig, stage: stage_folder.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = tmp_path / "export"
    exported.mkdir()
    (exported / "openvino_model.xml").write_text("<net/>")
    monkeypatch.setattr(shown, "_measured", lambda config, model: {**figures(0, 79.5), "parameters": 321})
    taught = replace(config, data=windows(tmp_path / "w", "d.json", str(exported)))
    (found,) = _others(taught, stage)
    assert (found.role, found.parameters) == ("teacher", 321)


def test_encoder_that_taught_its_layers_answers_nothing_to_compare(
    config: DistillConfig,
    stage: stage_folder.Stage,
    pages: list[TrainingPage],
    tiny_bert: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = str(tmp_path / "encoder")
    AutoModel.from_pretrained(tiny_bert).save_pretrained(encoder)
    monkeypatch.setattr(shown, "_measured", None)
    show(replace(config, objective=("relations",), teacher=encoder), stage, report(), HARDWARE)
    assert "- Teachers: `encoder`" in card(stage)
    assert {model.role for model in pages[0].models} == {"student"}


def test_teachers_are_those_of_the_objectives_each_once(config: DistillConfig, tmp_path: Path) -> None:
    data = windows(tmp_path / "two", "d.json", "one", "two")

    def teachers(*objective: str, teacher: str | None = None) -> list[str]:
        given: dict[str, Any] = {"objective": objective, "objective_weights": None, "teacher": teacher}
        return _teachers(replace(config, data=data, **given))

    assert teachers("labels") == teachers("labels", teacher="beside") == []
    assert teachers("intermediate", teacher="beside") == ["beside"]
    assert teachers("relations", teacher="beside") == ["beside"]
    assert teachers("prediction") == teachers("prediction", teacher="beside") == ["one", "two"]
    assert teachers("intermediate", "prediction", teacher="beside") == ["one", "two", "beside"]
    assert teachers("intermediate", "relations", "prediction", teacher="two") == ["one", "two"]


def test_sources_are_followed_through_augmentation_to_what_a_user_gave(tmp_path: Path) -> None:
    augmented = tmp_path / "augmented"
    with stage_folder.stage(str(augmented), AugmentConfig(data="squad_v2:train", embeddings="m")) as stage:
        stage.publish(REPORT)
    assert _sources(windows(tmp_path / "a", str(augmented))) == ("squad_v2:train",)
    assert _sources(windows(tmp_path / "b", "squad_v2:train")) == ("squad_v2:train",)
    text = str(tmp_path / "text.txt")
    assert _sources(windows(tmp_path / "c", text)) == (text,)
    shutil.rmtree(augmented)
    assert _sources(str(tmp_path / "a")) == (str(augmented),), "as far as it is known"


def test_sources_are_all_that_was_gathered(tmp_path: Path) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    given = GatherConfig(data=("a.json", "b.json"), documents="d.jsonl", questions="q.jsonl")
    with stage_folder.stage(first, given) as stage:
        stage.publish(REPORT)
    with stage_folder.stage(second, GatherConfig(data=(first, "b.json", "c.json"))) as stage:
        stage.publish(REPORT)
    assert _sources(windows(tmp_path / "w", second)) == ("a.json", "b.json", "d.jsonl", "q.jsonl", "c.json")


def test_curves_go_to_tensorboard_in_the_output(config: DistillConfig, stage: stage_folder.Stage) -> None:
    (board,) = trackers(config, stage)
    assert isinstance(board, TensorBoard)
    board.log(5, {"loss/total": 1.0})
    board.close()
    (file,) = storage.list_files(stage.path("tensorboard"))
    assert "events.out.tfevents" in file


def test_resumed_run_goes_on_with_its_run_of_mlflow(
    config: DistillConfig, stage: stage_folder.Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    followed = replace(config, mlflow=str(tmp_path / "mlflow"))
    ids = []
    for _ in range(2):
        found = trackers(followed, stage)
        assert len(found) == 2
        for tracker in found:
            tracker.close()
        ids.append(storage.read_json(stage.path("mlflow.json"))["run_id"])
    assert ids[0] == ids[1]


def test_mlflow_that_cannot_be_used_is_refused_before_tensorboard_begins(
    config: DistillConfig, stage: stage_folder.Stage
) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(InputError, match="give the address of a running server"):
        trackers(replace(config, mlflow="nonsense://x"), stage)
    assert storage.kind(stage.path("tensorboard")) == "absent"
