from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
import tiny

from tinyqa_ray.answer import FOLDER, answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.answer.rows import ANSWERS, PLACES
from tinyqa_ray.answer.stage import _ranks
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, WindowConfig
from tinyqa_ray.core import html
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import SUCCESS
from tinyqa_ray.models.settings import ModelSettings, write_settings
from tinyqa_ray.reader import Reader

Rows = list[dict[str, Any]]

WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
TEXTS = {
    f"d{number}": paragraph["context"]
    for number, paragraph in enumerate(
        paragraph for article in tiny.squad_document()["data"] for paragraph in article["paragraphs"]
    )
}
ASKING = ["Who built the lighthouse?", "What did they burn?", "How long is the river?"]


@pytest.fixture(autouse=True)
def _no_ray(here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "connected", contextlib.nullcontext)


def lines(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> AnswerConfig:
    """Each question of all documents, some of which say the same."""
    documents = [{"id": name, "text": text, "title": name} for name, text in TEXTS.items()]
    documents.append({"id": "copy", "text": "Once more. " + TEXTS["d0"], "title": "copy"})
    questions = [{"id": str(number), "question": question} for number, question in enumerate(ASKING)]
    write_settings(str(tmp_path / "fitted"), ModelSettings(no_answer_threshold=0.9))
    return AnswerConfig(
        model=tiny_bert,
        settings=str(tmp_path / "fitted"),
        documents=lines(tmp_path / "documents.jsonl", documents),
        questions=lines(tmp_path / "questions.jsonl", questions),
        window=WINDOW,
        top_k="all",
        evidence=True,
        rows_per_shard=5,
        threads=1,
    )


def routed(config: AnswerConfig, tmp_path: Path) -> AnswerConfig:
    """Each question of one document."""
    rows = [
        {"id": str(number), "question": question, "document_id": f"d{number}"}
        for number, question in enumerate(ASKING)
    ]
    return replace(config, questions=lines(tmp_path / "routed.jsonl", rows))


def texts_of(config: AnswerConfig) -> dict[str, str]:
    rows = map(json.loads, Path(str(config.documents)).read_text().splitlines())
    return {row["id"]: row["text"] for row in rows}


def made(config: AnswerConfig, output: Path) -> Rows:
    answer(config, str(output))
    table = pads.dataset(str(output / FOLDER)).to_table()
    expected = ANSWERS.append(PLACES) if config.evidence else ANSWERS
    assert table.schema.equals(expected, check_metadata=False)
    rows: Rows = table.to_pylist()
    return rows


def test_evidence_of_a_corpus_is_that_of_the_reader(config: AnswerConfig, tmp_path: Path) -> None:
    texts = texts_of(config)
    reader = Reader.from_pretrained(config.model, window=WINDOW, settings=config.settings)
    several = 0
    for rows_per_shard in (1, 1000):
        rows = made(replace(config, rows_per_shard=rows_per_shard), tmp_path / str(rows_per_shard))
        for number, question in enumerate(ASKING):
            found = [row for row in rows if row["question_id"] == str(number)]
            expected = reader.evidence(question, list(texts.values()), document_ids=list(texts))
            assert [row["answer"] for row in found] == [each.answer for each in expected]
            for row, each in zip(found, expected, strict=True):
                assert row["score"] == pytest.approx(each.score, abs=1e-4)
                places = [asdict(place) for place in each.places]
                assert row["places"] == [
                    {**place, "score": pytest.approx(place["score"], abs=1e-4)} for place in places
                ]
                best = places[0]
                assert [row[name] for name in ("document_id", "start", "end")] == [
                    best[name] for name in ("document_id", "start", "end")
                ]
                for place in row["places"]:
                    text = texts[place["document_id"]]
                    assert text[place["start"] : place["end"]] == place["answer"]
                    assert text[place["sentence_start"] :].startswith(place["sentence"])
                several += len(places) > 1
    assert several


def test_question_of_one_document_has_its_places_there(config: AnswerConfig, tmp_path: Path) -> None:
    reader = Reader.from_pretrained(config.model, window=WINDOW, settings=config.settings)
    rows = made(routed(config, tmp_path), tmp_path / "out")
    for number, question in enumerate(ASKING):
        found = [row for row in rows if row["question_id"] == str(number)]
        expected = reader.evidence(question, TEXTS[f"d{number}"], document_ids=[f"d{number}"])
        assert [row["answer"] for row in found] == [each.answer for each in expected]
        assert [len(row["places"]) for row in found] == [len(each.places) for each in expected]


def test_all_answers_are_those_of_the_reader(config: AnswerConfig, tmp_path: Path) -> None:
    texts = texts_of(config)
    reader = Reader.from_pretrained(config.model, window=WINDOW, settings=config.settings)
    for rows_per_shard in (1, 1000):
        plain = replace(config, evidence=False, rows_per_shard=rows_per_shard)
        rows = made(plain, tmp_path / str(rows_per_shard))
        for number, question in enumerate(ASKING):
            found = [row for row in rows if row["question_id"] == str(number)]
            expected = reader.answer(question, list(texts.values()), document_ids=list(texts), top_k="all")
            assert len(found) > 4
            assert [(row["document_id"], row["start"], row["end"]) for row in found] == [
                (each.document_id, each.start, each.end) for each in expected
            ]


def test_no_answer_is_a_row_without_places(config: AnswerConfig, tmp_path: Path) -> None:
    write_settings(str(tmp_path / "never"), ModelSettings(no_answer_threshold=0.0))
    never = replace(config, settings=str(tmp_path / "never"))
    for number, each in enumerate((never, routed(never, tmp_path))):
        rows = made(each, tmp_path / f"evidence-{number}")
        assert [row["places"] for row in rows if row["answer"] is None] == [None] * len(ASKING)
        alone = made(replace(each, evidence=False), tmp_path / f"all-{number}")
        assert [row["answer"] for row in alone] == [None] * len(ASKING)


@pytest.mark.parametrize("mode", ["every", "candidates", "routed"])
def test_run_with_evidence_killed_after_any_file_goes_on_to_the_same_bytes(
    mode: str,
    config: AnswerConfig,
    tmp_path: Path,
    run_with_kills: Callable[[Callable[[], Any], Sequence[int]], int],
) -> None:
    config = {
        "every": config,
        "candidates": replace(
            config, selection=CandidateConfig(candidates=4, passage_words=20, passage_overlap=5)
        ),
        "routed": routed(config, tmp_path),
    }[mode]
    config = replace(config, jsonl=True)
    answer(config, str(tmp_path / "calm"))
    kills = run_with_kills(lambda: answer(config, str(tmp_path / "killed")), (1, 2, 3, 5, 8, 1000))
    assert kills >= 4
    contents = [
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.suffix in (".parquet", ".jsonl")
        }
        for name in ("calm", "killed")
    ]
    assert contents[0] == contents[1] != {}


def test_page_lists_the_places_with_their_sentences(config: AnswerConfig, tmp_path: Path) -> None:
    every = made(config, tmp_path / "every")
    best = [row for row in every if row["rank"] == 0 and len(row["places"]) > 1]
    question = {"id": "one", "question": best[0]["question"]}  # a page shows few questions
    one = replace(config, questions=lines(tmp_path / "one.jsonl", [question]))
    (row, *_) = made(one, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert row["places"] == best[0]["places"]
    assert f"<h4>{len(row['places'])} places</h4>" in page
    place = row["places"][1]
    first = place["start"] - place["sentence_start"]
    marked = html.marked(place["sentence"], first, first + len(place["answer"]))
    assert f"{marked} <span class='muted'>{place['document_id']}, characters {place['start']}-" in page


def test_run_of_an_earlier_version_is_known_again(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    """One that knew nothing of evidence, with or without several answers."""
    for top_k in (1, 3):
        old, output = replace(config, evidence=False, top_k=top_k), tmp_path / str(top_k)
        answer(old, str(output))
        success = json.loads((output / SUCCESS).read_text())
        assert "ranks" not in success["inputs"]
        del success["config"]["evidence"]
        (output / SUCCESS).write_text(json.dumps(success))
        before = (output / SUCCESS).read_bytes()
        answer(old, str(output))
        assert (output / SUCCESS).read_bytes() == before
        with pytest.raises(InputError, match="evidence False there, True here"):
            answer(replace(old, evidence=True), str(output))


def test_fitted_ranks_decide_what_is_made(config: AnswerConfig) -> None:
    fitted = ModelSettings(rank_temperatures=(2.0,), rank_shifts=(1.0,))
    assert _ranks(config, ModelSettings()) is None
    assert _ranks(config, fitted) == "temperatures (2.0,), shifts (1.0,)"
    assert _ranks(replace(config, evidence=False, top_k=1), fitted) is None
    assert _ranks(replace(config, evidence=False, top_k=2), fitted) is not None
    shipped = replace(config, model="tinyqa-mini", settings=None, evidence=False)
    assert _ranks(replace(shipped, top_k=2), fitted) is None
    assert _ranks(shipped, fitted) is not None
