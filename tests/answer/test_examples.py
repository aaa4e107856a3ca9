"""What the shell shows of answers in a quickstart."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pyarrow.dataset as pads
import pytest
import tiny
from rich.console import Console

from tinyqa_ray.answer import FOLDER, answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.cli import summary
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.recipes.run import StageResult


def test_examples_mark_the_answer_in_its_own_document(
    tiny_bert: str, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "connected", contextlib.nullcontext)
    texts = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(texts)]
    asked = [{"question": "Who built it?", "document_id": row["id"]} for row in rows]
    for name, lines in (("documents", rows), ("questions", asked)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = AnswerConfig(
        model=tiny_bert,
        documents=str(tmp_path / "documents.jsonl"),
        questions=str(tmp_path / "questions.jsonl"),
        keep_no_answers=False,
        threads=1,
    )
    output = str(tmp_path / "out")
    report = answer(config, output)
    assert report.answered
    result = StageResult(name="answers", report=report, seconds=1.0, was_finished=False, output=output)
    printed = io.StringIO()
    panels = summary.examples(result, shown=5, plain=True)
    Console(file=printed, width=4000).print(*panels)
    found = pads.dataset(str(tmp_path / "out" / FOLDER)).to_table().to_pylist()
    assert len(panels) == 5
    for row in sorted(found, key=lambda row: -row["score"])[:5]:
        text = texts[int(row["document_id"][1:])]
        marked = f"{text[: row['start']]}»{row['answer']}«{text[row['end'] :]}"
        assert marked in printed.getvalue()
