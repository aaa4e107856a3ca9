"""Which texts of a test set a model has seen, and its F1 without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import overlap
import pytest
import tiny

WORDS = "the mill on the river was built in the year of the great flood by a carpenter from the north"


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Two paragraphs with a question each, of which the second stands in what was learned."""
    document = tiny.squad_document()
    first, second = (dict(document["data"][0]["paragraphs"][0]) for _ in range(2))
    question = {"id": "q2", "question": "Where?", "is_impossible": True, "answers": []}
    second.update(context=WORDS, qas=[question])
    document["data"] = [{"title": "t", "paragraphs": [first, second]}]
    path = tmp_path / "folder" / "test.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    return str(path)


def test_text_that_was_learned_from_is_counted_and_left_out(
    data: str, tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = tmp_path / "passages.jsonl"
    learned.write_text(json.dumps({"text": f"As we know, {WORDS.upper()}."}) + "\n")
    (tmp_path / "other.json").write_text(
        json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Nothing of it.", "qas": []}]}]})
    )
    written = tmp_path / "found.json"
    line = ["overlap.py", "--learned", str(tmp_path / "other.json"), "--passages", str(learned)]
    monkeypatch.setattr(
        "sys.argv", [*line, "--measured", data, "--model", tiny_bert, "--output", str(written)]
    )
    overlap.main()
    found: dict[str, Any] = json.loads(written.read_text())
    here = found["measured"]["test"]
    assert (here["paragraphs"], here["that_repeat_learned_text"]) == (2, 1)
    assert set(here["learned_texts_that_repeat_it"].values()) == {0, 1}
    assert here["all"]["questions"] - here["apart"]["questions"] == 1


def test_files_of_one_name_are_told_apart() -> None:
    assert overlap.named("data/a/train.json") != overlap.named("data/b/train.json")
