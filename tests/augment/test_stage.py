from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyqa_ray import squad
from tinyqa_ray.augment.stage import Augmenter, AugmentReport, augment, embedding_neighbours
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.errors import InputError

COPIES = 4


@pytest.fixture(scope="module")
def neighbours(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("neighbours") / "neighbours.parquet"
    pq.write_table(embedding_neighbours(tiny_bert, 5).to_table(), path)
    return str(path)


@pytest.fixture
def config(tiny_squad: str, tiny_bert: str) -> AugmentConfig:
    return AugmentConfig(
        data=tiny_squad, embeddings=tiny_bert, copies=COPIES, replace_probability=1.0, candidates=5
    )


@pytest.fixture
def originals(tiny_squad: str) -> list[squad.Paragraph]:
    return squad.read_squad(tiny_squad)


@pytest.fixture
def multiply(
    config: AugmentConfig, neighbours: str
) -> Callable[[list[squad.Paragraph]], tuple[list[squad.Paragraph], dict[str, float]]]:
    def run(paragraphs: list[squad.Paragraph]) -> tuple[list[squad.Paragraph], dict[str, float]]:
        table, counts = Augmenter(config, neighbours)(squad.to_table(paragraphs))
        return squad.from_table(table), counts

    return run


Multiply = Callable[[list[squad.Paragraph]], tuple[list[squad.Paragraph], dict[str, float]]]


def test_original_stands_first_unchanged(multiply: Multiply, originals: list[squad.Paragraph]) -> None:
    made, _ = multiply(originals)
    assert len(made) == len(originals) * (1 + COPIES)
    assert made[:: 1 + COPIES] == originals
    assert [paragraph.copy for paragraph in made] == list(range(1 + COPIES)) * len(originals)


def test_every_answer_stands_at_its_offset_in_every_copy(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    made, _ = multiply(originals)
    moved = 0
    for paragraph in made:
        original = next(each for each in originals if each.paragraph_id == paragraph.source_id)
        for question, before in zip(paragraph.questions, original.questions, strict=True):
            assert (question.id, question.question, question.is_impossible) == (
                before.id,
                before.question,
                before.is_impossible,
            )
            assert [answer.text for answer in question.answers] == [each.text for each in before.answers]
            for answer, old in zip(question.answers, before.answers, strict=True):
                end = answer.answer_start + len(answer.text)
                assert paragraph.context[answer.answer_start : end] == answer.text
                moved += answer.answer_start != old.answer_start
    assert moved > 0, "no answer moved, so nothing was tested"


def test_copies_change_and_are_counted(multiply: Multiply, originals: list[squad.Paragraph]) -> None:
    made, counts = multiply(originals)
    changed = sum(
        paragraph.context != next(o.context for o in originals if o.paragraph_id == paragraph.source_id)
        for paragraph in made
        if paragraph.copy
    )
    assert changed > 0.9 * len(originals) * COPIES
    assert counts["copies"] == len(made)
    assert counts["questions"] == sum(len(paragraph.questions) for paragraph in made)
    assert 0 < counts["words_replaced"] < counts["words"]


def test_paragraph_ids_are_unique_and_name_their_source(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    made, _ = multiply(originals)
    assert len({paragraph.paragraph_id for paragraph in made}) == len(made)
    assert {p.paragraph_id for p in made if p.copy == 2} == {f"{o.paragraph_id}~2" for o in originals}


def test_copies_of_a_paragraph_do_not_depend_on_its_shard(
    multiply: Multiply, originals: list[squad.Paragraph]
) -> None:
    together, _ = multiply(originals)
    apart = [copy for paragraph in reversed(originals) for copy in reversed(multiply([paragraph])[0])]
    assert together == apart[::-1]


def test_another_seed_gives_other_copies(
    config: AugmentConfig, neighbours: str, originals: list[squad.Paragraph]
) -> None:
    table = squad.to_table(originals)
    first: pa.Table = Augmenter(config, neighbours)(table)[0]
    other: pa.Table = Augmenter(replace(config, seed=config.seed + 1), neighbours)(table)[0]
    assert first["context"].to_pylist() != other["context"].to_pylist()


@pytest.mark.parametrize(
    ("absent", "complaint"),
    [
        ({"data": "/no/such.json"}, "no such file or folder"),
        ({"embeddings": "/no/such"}, "no such model folder"),
    ],
)
def test_absent_input_leaves_no_folder_behind(
    config: AugmentConfig, tmp_path: Path, absent: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        augment(replace(config, **absent), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_copies_are_not_multiplied_again(
    config: AugmentConfig, multiply: Multiply, originals: list[squad.Paragraph], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(squad.to_table(multiply(originals)[0]), tmp_path / "data" / "part.parquet")
    with pytest.raises(InputError, match="holds copies already"):
        augment(replace(config, data=str(tmp_path / "data")), str(tmp_path / "out"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_stage_is_exact_finished_once_and_refuses_another_config(
    config: AugmentConfig, originals: list[squad.Paragraph], multiply: Multiply, tmp_path: Path
) -> None:
    config = replace(config, rows_per_shard=3)
    first, again = tmp_path / "first", tmp_path / "again"
    report = augment(config, str(first))
    assert augment(replace(config, actors=2), str(again)) == report
    assert contents(first / "paragraphs") == contents(again / "paragraphs")
    assert len(contents(first / "paragraphs")) == 3

    # read_squad checks every answer's offset.
    made, counts = multiply(originals)
    assert squad.read_squad(str(first)) == made
    assert report == AugmentReport(
        paragraphs=len(originals), **{name: int(value) for name, value in counts.items()}
    )

    times = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert augment(config, str(first)) == report
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == times

    with pytest.raises(InputError, match=r"other settings \(copies 4 there, 5 here\)"):
        augment(replace(config, copies=5), str(first))
