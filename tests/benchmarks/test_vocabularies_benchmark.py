"""Students of another vocabulary, and what of a teacher's answers arrives in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from transformers import AutoModel

from tinyqa_ray.models import pretrained


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *options: str) -> dict[str, Any]:
    data = tmp_path / "data.json"
    data.write_text(json.dumps(tiny.squad_document()))
    sizes = ["--tokens", "400", "--work", str(tmp_path / "work"), "--output", str(tmp_path / "found.json")]
    line = ["vocabularies.py", "--train", str(data), "--dev", str(data), *sizes, *options]
    monkeypatch.setattr("sys.argv", line)
    vocabularies.main()
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    return found


def test_answers_are_compared_and_a_students_embeddings_are_means_of_the_encoders(
    tiny_bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run(monkeypatch, tmp_path, "--teachers", tiny_bert, "--encoder", tiny_bert)
    rows = {row["vocabulary"]: row for row in found["projected"]}
    assert set(rows) == {"its own", *vocabularies.KINDS}
    for kind in vocabularies.KINDS:
        assert 0 <= rows[kind]["same_answer_percent"] <= 100
        assert 0 < rows[kind]["ends_on_border_percent"] <= 100
    own, other = (pretrained.load_tokenizer(name) for name in (tiny_bert, str(tmp_path / "work/byte-level")))
    before, after = (
        AutoModel.from_pretrained(name).get_input_embeddings().weight.detach()
        for name in (tiny_bert, tmp_path / "work/byte-level")
    )
    longest = max(other.get_vocab(), key=len)
    text = other.convert_tokens_to_string([longest])
    pieces = own(text, add_special_tokens=False)["input_ids"]
    assert len(pieces) >= 1
    assert after[other.get_vocab()[longest]].tolist() == pytest.approx(before[pieces].mean(0).tolist())
    assert after[other.cls_token_id].tolist() == before[own.cls_token_id].tolist()
    assert len(after) == len(other) != len(own)
