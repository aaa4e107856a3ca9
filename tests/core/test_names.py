from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.names import display_name, full_id, hub_id, hub_revision


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("deepset/roberta-base-squad2", "deepset/roberta-base-squad2"),
        ("squad_v2:train", "squad_v2:train"),
        ("/a/b/student/model", "student"),
        ("../runs/student/", "student"),
        ("~/student/best/step-000000400", "student/best/step-000000400"),
        ("s3://key:word@bucket/runs/train.json", "train.json"),
        ("s3://key:word@bucket", "bucket"),
        ("C:\\users\\anna\\train.json", "train.json"),
        ("model", "model"),
        ("/", "this folder"),
    ],
)
def test_display_name_is_the_telling_end_of_a_source(source: str, told: str) -> None:
    assert display_name(source) == told


@settings(deadline=None)
@given(st.lists(st.text("abz.-_", min_size=1, max_size=8), min_size=2, max_size=6))
def test_absolute_path_tells_none_of_its_first_folders(parts: list[str]) -> None:
    told = display_name("/secret-home/" + "/".join(parts))
    assert "secret-home" not in told or set(parts) <= {".", ".."}
    assert not told.startswith("/")


def test_folder_or_file_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("models/student") == ("models/student", None)
    (tmp_path / "models" / "student").mkdir(parents=True)
    assert hub_id("models/student") is None
    assert hub_id("train.json") is None


@pytest.mark.parametrize(
    ("source", "full"),
    [
        ("squad_v2:train", "rajpurkar/squad_v2:train"),
        ("roberta-base", "FacebookAI/roberta-base"),
        ("squad_v2@main:train", "rajpurkar/squad_v2@main:train"),
        ("rajpurkar/squad_v2:train", "rajpurkar/squad_v2:train"),
        ("deepset/roberta-base-squad2", "deepset/roberta-base-squad2"),
        ("./roberta-base", "./roberta-base"),
        ("s3://bucket/squad_v2", "s3://bucket/squad_v2"),
    ],
)
def test_id_from_before_owners_gets_its_owner(source: str, full: str) -> None:
    assert full_id(source) == full


def test_revision_of_a_hub_id_is_read_apart() -> None:
    assert hub_id("rajpurkar/squad_v2@main:train") == ("rajpurkar/squad_v2", "train")
    assert hub_revision("rajpurkar/squad_v2@refs/pr/1:train") == "refs/pr/1"
    assert hub_id("deepset/x@v1.0") == ("deepset/x", None)
    assert hub_revision("deepset/x@v1.0") == "v1.0"
    assert hub_revision("deepset/x") is None
