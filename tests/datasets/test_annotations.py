from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import squad
from tinyqa_ray.datasets.annotations import as_row

TEXT = "Ada Byron built the first engine in Turin in 1843."


def region(start: Any = 0, end: Any = 9, **changes: Any) -> dict[str, Any]:
    value = {"start": start, "end": end, "text": "Ada Byron", "labels": ["Answer"], **changes}
    return {"value": value, "from_name": "answer", "to_name": "text", "type": "labels"}


def task(*results: Any, **data: Any) -> dict[str, Any]:
    """A task of Label Studio, with a result an annotator."""
    annotations = [{"id": number, "result": result} for number, result in enumerate(results)]
    return {"id": 7, "data": {"text": TEXT, "question": "Who?", **data}, "annotations": annotations}


def line(*spans: Any, **changes: Any) -> dict[str, Any]:
    """A line of doccano."""
    return {"id": 7, "text": TEXT, "question": "Who?", "label": list(spans), **changes}


def read(folder: Path, *entries: Any) -> list[squad.Question]:
    (folder / "export.json").write_text(json.dumps(entries))
    (folder / "export.jsonl").write_text("\n".join(map(json.dumps, entries)))
    (listed,), (lines,) = (squad.read_squad(str(folder / f"export.{ending}")) for ending in ("json", "jsonl"))
    assert listed.questions == lines.questions
    assert listed.context == TEXT
    return list(listed.questions)


ADA, TURIN = squad.GoldAnswer("Ada Byron", 0), squad.GoldAnswer("Turin", 36)


@pytest.mark.parametrize(
    ("entry", "answers"),
    [
        (task([region()]), (ADA,)),
        (task([region()], [region(36, 41, text="Turin")]), (ADA, TURIN)),
        ({"id": 7, "data": task()["data"], "completions": [{"result": [region()]}]}, (ADA,)),
        ({**line(), "label": None, "answer": [region()["value"]]}, (ADA,)),
        (line([0, 9, "ANSWER"]), (ADA,)),
        (line([0, 9, "ANSWER"], [36, 41, "ANSWER"]), (ADA, TURIN)),
        (
            {**line(), "label": None, "entities": [{"start_offset": 36, "end_offset": 41, "label": "A"}]},
            (TURIN,),
        ),
    ],
)
def test_labelled_spans_are_the_answers(
    tmp_path: Path, entry: dict[str, Any], answers: tuple[squad.GoldAnswer, ...]
) -> None:
    assert read(tmp_path, entry) == [squad.Question("7", "Who?", False, answers)]


@pytest.mark.parametrize("entry", [task([], is_impossible=True), line(is_impossible=True)])
def test_question_said_to_be_impossible_is_unanswerable(tmp_path: Path, entry: dict[str, Any]) -> None:
    assert read(tmp_path, entry) == [squad.Question("7", "Who?", True, ())]


def test_question_that_nobody_annotated_is_unlabelled(tmp_path: Path) -> None:
    skipped = task([region()])
    skipped["annotations"][0]["was_cancelled"] = True
    entries = [task(id=1), {**skipped, "id": 2}, line(id=3, is_impossible=False)]
    assert [(question.id, question.unlabelled) for question in read(tmp_path, *entries)] == [
        ("1", True),
        ("2", True),
        ("3", True),
    ]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (task([region()], question=None), "is an annotated text without a text 'question'; give each one"),
        (line([0, 9, "A"], question=None), "is an annotated text without a text 'question'; give each one"),
        (task([]), "no span is labelled; say by an is_impossible of true"),
        (line(), "no span is labelled; say by an is_impossible of true"),
        (task([region()], []), "one annotator gave it an answer, another none; keep one"),
        (task([region("/p[1]", "/p[1]")]), "is no span of its text .start '/p.1.', end '/p.1.'"),
        (task([{"type": "choices", "value": {"choices": ["No"]}}]), "is no span of its text"),
        (line([0, 99, "A"]), "is no span of its text .start 0, end 99.; label spans"),
        (line("positive"), "is no span of its text"),
        (line([0, 9, "PERSON"], [36, 41, "PLACE"]), "its spans have labels PERSON, PLACE; keep only"),
        ({**task(), "annotations": {}}, "its annotations are not a list"),
        (task(None), "its labels are no list of spans"),
        (task([region(text="Ida")]), "has the answer 'Ida' at 0, where its context reads 'Ada'"),
        (task([region()], is_impossible=True), "is_impossible, yet has the answer 'Ada Byron'"),
    ],
)
def test_export_that_may_mean_two_things_is_refused_in_one_line(
    tmp_path: Path, entry: dict[str, Any], complaint: str
) -> None:
    (tmp_path / "export.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=rf"export\.json: .*{complaint}") as caught:
        squad.read_squad(str(tmp_path / "export.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", [3, {"id": 1}, {"text": "A.", "label": 1}, {"context": "c", "text": "t", "labels": []}]
)
def test_other_values_stay_as_they_are(value: Any) -> None:
    assert as_row(value, "a.json: row 0") is value
