from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard as HubCard

from tinyqa_ray.distill.card import ModelCard, model_card
from tinyqa_ray.distill.page import ModelFigures

STUDENT = ModelFigures(
    name="student",
    figures={
        "exact": 69.123456,
        "f1": 72.5,
        "has_ans_exact": 60.0,
        "has_ans_f1": 66.0,
        "no_ans_f1": 79.0,
        "forced_f1": None,
        "best_f1": 73.0,
    },
    parameters=22_713_602,
)
TEACHER = ModelFigures(name="minilm-squad2", figures={"f1": 80.0}, parameters=30_000_000, role="teacher")
CARD = ModelCard(
    name="tiny-student",
    student="nreimers/MiniLM-L6-H384-uncased",
    model=STUDENT,
    max_seq_len=384,
    recipe={
        "data": "/home/anna/out/logits",
        "objective": ["intermediate", "prediction"],
        "learning_rate": 3e-5,
        "student_layers": None,
        "teacher": "/home/anna/minilm-squad2/model",
    },
    data=("squad_v2:train", "/home/anna/out/extra.json"),
    teachers=("/home/anna/minilm-squad2/model",),
    dev="squad_v2:validation",
    compared=(TEACHER,),
    hardware=(("GPUs", "4 × V100 | 32 GB"),),
    versions={"torch": "2.13.0"},
)


def front_matter(text: str) -> dict[str, object]:
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_hub_reads_the_figures_back() -> None:
    data = HubCard(model_card(CARD)).data
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert found == {
        "Exact Match": ("exact_match", 69.1235),
        "F1": ("f1", 72.5),
        "HasAns Exact Match": ("exact_match", 60.0),
        "HasAns F1": ("f1", 66.0),
        "NoAns F1": ("f1", 79.0),
    }
    places = {(r.task_type, r.dataset_type, r.dataset_split) for r in data.eval_results}
    assert places == {("question-answering", "squad_v2", "validation")}
    assert data.model_name == "tiny-student"


def test_front_matter_says_what_the_hub_asks() -> None:
    found = front_matter(model_card(CARD))
    del found["model-index"]
    assert found == {
        "base_model": "nreimers/MiniLM-L6-H384-uncased",
        "datasets": ["squad_v2"],
        "language": "en",
        "library_name": "transformers",
        "pipeline_tag": "question-answering",
        "tags": ["question-answering", "distillation", "tinyqa-ray"],
    }
    assert front_matter(model_card(replace(CARD, license="apache-2.0")))["license"] == "apache-2.0"


def test_commits_are_told_to_people_and_ids_without_them_to_the_hub() -> None:
    one, two, three = ("1" * 40, "2" * 40, "3" * 40)
    card = replace(
        CARD,
        student=f"nreimers/MiniLM@{one}",
        teachers=(f"deepset/teacher@{two}",),
        dev=f"rajpurkar/squad_v2@{three}:validation",
        recipe={"teacher": f"deepset/teacher@{two}"},
    )
    text = model_card(card)
    assert front_matter(text)["base_model"] == "nreimers/MiniLM"
    (result, *_) = HubCard(text).data.eval_results
    assert (result.dataset_type, result.dataset_split) == ("rajpurkar/squad_v2", "validation")
    assert f"It started from `nreimers/MiniLM@{one}`" in text
    assert f"- Teachers: `deepset/teacher@{two}`" in text
    assert f"- Measured on: `rajpurkar/squad_v2@{three}:validation`" in text
    assert f"| teacher | deepset/teacher@{two} |" in text


@pytest.mark.parametrize("figures", [{}, {"f1": None}, {"f1": float("nan")}])
def test_unmeasured_model_claims_nothing(figures: dict[str, float | None]) -> None:
    text = model_card(replace(CARD, model=replace(STUDENT, figures=figures)))
    assert "model-index" not in front_matter(text)
    assert "Not measured" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_dev_file_is_named_by_its_end(tmp_path: Path) -> None:
    dev = tmp_path / "dev-v2.0.json"
    dev.write_text("{}")
    text = model_card(replace(CARD, dev=str(dev)))
    (result, *_) = HubCard(text).data.eval_results
    assert (result.dataset_type, result.dataset_name, result.dataset_split) == (dev.name, dev.name, None)
    assert str(tmp_path) not in text


def test_no_folder_of_the_machine_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "teachers" / "big" / "model"
    folder.mkdir(parents=True)
    text = model_card(replace(CARD, student=str(folder), teachers=(str(folder),), data=(str(folder),)))
    assert str(tmp_path) not in text
    assert "/home" not in text
    assert "anna" not in text
    assert {"base_model", "datasets"}.isdisjoint(front_matter(text))
    assert "`big`" in text


def test_cells_keep_the_table_whole() -> None:
    lines = model_card(CARD).splitlines()
    assert "| GPUs | 4 × V100 \\| 32 GB |" in lines
    assert "| objective | intermediate, prediction |" in lines
    assert "| student_layers | – |" in lines


def test_figures_stand_beside_the_teacher() -> None:
    lines = model_card(CARD).splitlines()
    assert "| student | 69.1 | 72.5 | 66.0 | 79.0 | 73.0 | 90.6 % | 22,713,602 |" in lines
    assert "| minilm-squad2 | – | 80.0 | – | – | – | 100.0 % | 30,000,000 |" in lines


def test_choice_by_dev_is_admitted() -> None:
    assert "flatters it too" not in model_card(CARD)
    assert "flatters it too" in model_card(replace(CARD, recipe={**CARD.recipe, "publish": "best"}))


def test_fitted_threshold_is_named() -> None:
    assert "default, 0.5" in model_card(CARD)
    assert "0.4312, fitted" in model_card(replace(CARD, threshold=0.43124))


def test_student_of_labels_alone_is_no_distillation() -> None:
    text = model_card(replace(CARD, teachers=(), recipe={"objective": ("labels",)}))
    assert front_matter(text)["tags"] == ["question-answering", "tinyqa-ray"]
    assert "- Teachers: none" in text


def test_code_of_the_card_runs(tiny_bert: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", model_card(replace(CARD, max_seq_len=48)), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        short = re.sub(r"Robert Boyle.*(?=\")", "Boyle proved it.", block)  # one window of 48 tokens
        exec(short.replace("path/of/this/folder", tiny_bert), {})
    reader_line, pipeline_line, plain_line = capsys.readouterr().out.splitlines()
    assert "answer" in pipeline_line
    # The same weights and the same rule: the same span, or None.
    assert reader_line.startswith(f"{plain_line} ")
