"""Answering with a first pass: what is kept, the same bytes however it runs, and what identifies the run."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
import tiny

from tinyqa_ray.answer import FOLDER, AnswerReport, answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, WindowConfig
from tinyqa_ray.core import shards, stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import ModelSettings, first_reader_identity, write_settings
from tinyqa_ray.reader import Reader

WINDOW = WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20)
TEXTS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
ASKED = ["Who built the lighthouse?", "What did they burn?", "How long is the river?"]


@pytest.fixture
def config(tiny_bert: str, tiny_roberta: str, tmp_path: Path) -> AnswerConfig:
    """Every question of all documents, in several units."""
    rows = [{"id": f"d{i}", "text": text} for i, text in enumerate(TEXTS)]
    asked = [{"id": f"q{i}", "question": question} for i, question in enumerate(ASKED)]
    for name, values in (("documents", rows), ("questions", asked)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, values)))
    return AnswerConfig(
        model=str(shutil.copytree(tiny_roberta, tmp_path / "model")),
        first_pass=tiny_bert,
        first_pass_keep=1.0,
        documents=str(tmp_path / "documents.jsonl"),
        questions=str(tmp_path / "questions.jsonl"),
        window=WINDOW,
        top_k=3,
        rows_per_shard=5,
        threads=1,
    )


@pytest.fixture(autouse=True)
def _no_ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "here" in request.fixturenames:
        monkeypatch.setattr(module, "connected", contextlib.nullcontext)


def made(config: AnswerConfig, output: Path) -> tuple[list[dict[str, Any]], AnswerReport]:
    report = answer(config, str(output))
    return pads.dataset(str(output / FOLDER)).to_table().to_pylist(), report


@pytest.fixture
def encoder(tiny_bert: str, tmp_path: Path) -> str:
    """An encoder of sentences, as sentence-transformers stores one."""
    return str(tiny.write_sentence_encoder(tiny_bert, tmp_path / "encoder"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / FOLDER).iterdir()}


def test_answers_are_those_of_the_reader_with_the_same_first_pass(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    rows, report = made(config, tmp_path / "out")
    reader = Reader.from_pretrained(
        config.model, window=WINDOW, first_pass=config.first_pass, first_pass_keep=1.0
    )
    ids = [f"d{i}" for i in range(len(TEXTS))]
    for number, question in enumerate(ASKED):
        expected = reader.answer(question, TEXTS, document_ids=ids, top_k=3)
        found = [row for row in rows if row["question_id"] == f"q{number}"]
        assert [(row["document_id"], row["answer"]) for row in found] == [
            (each.document_id, each.answer) for each in expected
        ]
        assert [row["score"] for row in found] == pytest.approx([each.score for each in expected], abs=1e-4)
    assert report.pairs == len(ASKED) * len(TEXTS)
    assert report.pairs_read is not None
    assert len(ASKED) <= report.pairs_read < report.pairs


def test_encoder_of_sentences_makes_the_first_pass(
    config: AnswerConfig, encoder: str, tmp_path: Path, here: list[str]
) -> None:
    config = replace(config, first_pass=encoder, first_pass_keep=0.001)
    rows, report = made(config, tmp_path / "out")
    assert report.pairs_read < len(TEXTS) * len(ASKED)
    alone = Reader.from_pretrained(
        config.model, window=WINDOW, first_pass=encoder, first_pass_keep=config.first_pass_keep
    )
    for question, asked in enumerate(ASKED):
        expected = alone.answer(asked, TEXTS, document_ids=[f"d{i}" for i in range(len(TEXTS))], top_k=3)
        found = [row["answer"] for row in rows if row["question_id"] == f"q{question}"]
        assert found == [each.answer for each in expected]


def test_keeping_everything_changes_no_answer(config: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    alone, told = made(replace(config, first_pass=None, first_pass_keep=None), tmp_path / "alone")
    rows, report = made(replace(config, first_pass_keep=1e6), tmp_path / "out")
    assert rows == alone
    assert (report.pairs_read, told.pairs_read) == (report.pairs, None)


def test_candidates_are_read_first_too(config: AnswerConfig, tmp_path: Path, here: list[str]) -> None:
    chosen = replace(
        config, selection=CandidateConfig(candidates=4, passage_words=20, passage_overlap=5, language=None)
    )
    _, report = made(chosen, tmp_path / "out")
    assert report.pairs_read is not None
    assert len(ASKED) <= report.pairs_read < report.pairs


def test_question_of_one_document_is_left_to_the_model(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    named = [{"question": question, "document_id": f"d{i}"} for i, question in enumerate(ASKED)]
    (tmp_path / "named.jsonl").write_text("\n".join(map(json.dumps, named)))
    routed = replace(config, questions=str(tmp_path / "named.jsonl"))
    rows, report = made(routed, tmp_path / "out")
    alone, _ = made(replace(routed, first_pass=None, first_pass_keep=None), tmp_path / "alone")
    assert (rows, report.pairs_read) == (alone, None)


def test_run_killed_after_any_file_goes_on_to_the_same_bytes(
    config: AnswerConfig, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(config, tmp_path / "whole")
    whole, broken, work, kills = content(tmp_path / "whole"), tmp_path / "broken", shards.work, []

    def dying(shard: shards.Shard, mapper: shards.Mapper) -> None:
        work(shard, mapper)
        kills.append(shard.target)
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "work", dying)
    while not (broken / stage_folder.SUCCESS).exists():
        with contextlib.suppress(KeyboardInterrupt):
            answer(config, str(broken))
    assert len(kills) == len(set(kills)) > 6, "no file is made twice"
    assert any("/first/" in each for each in kills)
    assert content(broken) == whole
    assert not (broken / "_work").exists()


def test_first_model_and_what_it_keeps_identify_the_run(
    config: AnswerConfig, tiny_bert: str, tmp_path: Path, here: list[str]
) -> None:
    made(config, tmp_path / "out")
    with pytest.raises(InputError, match="first_pass_keep"):
        answer(replace(config, first_pass_keep=2.0), str(tmp_path / "out"))
    other = tiny.save_qa_model(tmp_path / "other", "bert", seed=5)
    with pytest.raises(InputError, match="content of first_pass"):
        answer(replace(config, first_pass=other), str(tmp_path / "out"))
    fitted = replace(config, first_pass_keep=None)
    with pytest.raises(InputError, match="what it keeps was not fitted"):
        answer(fitted, str(tmp_path / "new"))
    write_settings(
        config.model,
        ModelSettings(first_pass_keep=1.0, first_pass_fitted_for=first_reader_identity(tiny_bert)),
    )
    assert made(fitted, tmp_path / "new")[0] == made(config, tmp_path / "out")[0]


def test_run_of_an_earlier_version_without_a_first_pass_is_still_its_own(
    config: AnswerConfig, tmp_path: Path, here: list[str]
) -> None:
    plain = replace(config, first_pass=None, first_pass_keep=None)
    _, report = made(plain, tmp_path / "out")
    path = tmp_path / "out" / stage_folder.SUCCESS
    document = json.loads(path.read_text())
    for name in ("first_pass", "first_pass_keep"):
        del document["config"][name]
    del document["report"]["pairs_read"]
    path.write_text(json.dumps(document))
    assert answer(plain, str(tmp_path / "out")) == report


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pairs": "p", "documents": None, "questions": None}, "pairs have one each; leave it out"),
        ({"first_pass": None}, "give first_pass, too"),
        ({"first_pass_keep": -1.0}, "first_pass_keep is -1.0; it must be at least 0"),
    ],
)
def test_first_pass_that_does_not_fit_is_refused(
    config: AnswerConfig, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        replace(config, **changes)


@pytest.mark.slow
@pytest.mark.ray
def test_two_actors_give_the_bytes_of_one(config: AnswerConfig, tmp_path: Path, ray_cluster: None) -> None:
    made(config, tmp_path / "one")
    made(replace(config, actors=2), tmp_path / "two")
    assert content(tmp_path / "one") == content(tmp_path / "two")
