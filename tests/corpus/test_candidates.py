from __future__ import annotations

import dataclasses
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.configs import CandidateConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import candidates
from tinyqa_ray.corpus.candidates import CANDIDATES, Index, Selection, build_index, select
from tinyqa_ray.corpus.tables import ASKED, DOCUMENTS, QUESTIONS

TOPICS = ["prime numbers", "the Norman dukes", "rivers of Warsaw", "steam engines", "東京 towers"]
TEXTS = [f"Passage {i} is about {TOPICS[i % 5]} and number{i}." for i in range(40)]
ASKING = ["Which dukes?", "What of number7?", "Zyzzyva?", "Prime number38?", "東京?"]
CONFIG = CandidateConfig(candidates=3, documents_per_shard=7, questions_per_run=2)


def rows_of(schema: pa.Schema, texts: Sequence[str | None]) -> pa.Table:
    """Documents or questions; a null one is in error."""
    kind = schema.names[2 if schema == QUESTIONS else 1].removesuffix("_id")
    columns = {
        schema.names[0]: list(range(len(texts))),
        f"{kind}_id": [f"{kind[0]}{row}" for row in range(len(texts))],
        schema.names[2]: list(texts),
        "error": [None if text else "unreadable" for text in texts],
    }
    nulls = [None] * len(texts)
    return pa.table([pa.array(columns.get(field.name, nulls), field.type) for field in schema], schema=schema)


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Files of documents, two, and of questions, one."""
    documents = rows_of(DOCUMENTS, [*TEXTS, None])
    files = [str(tmp_path / f"documents-{i}.parquet") for i in range(2)]
    pq.write_table(documents.slice(0, 25), files[0])
    pq.write_table(documents.slice(25), files[1])
    questions = str(tmp_path / "questions.parquet")
    pq.write_table(rows_of(QUESTIONS, [*ASKING, None]), questions)
    return files, [questions]


def run(
    corpus: tuple[list[str], list[str]], folder: str, config: CandidateConfig = CONFIG
) -> tuple[Index, Selection]:
    index = build_index(corpus[0], storage.join(folder, "index"), config)
    return index, select(index, corpus[1], storage.join(folder, "asked"), config)


def read(selection: Selection) -> list[dict[str, Any]]:
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(file))) for file in selection.files]
    return pa.concat_tables(tables).to_pylist() if tables else []


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_questions_get_their_passages(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str]
) -> None:
    index, selection = run(corpus, str(tmp_path / "out"))
    found = read(selection)
    best: dict[int, dict[str, Any]] = {}
    for row in sorted(found, key=lambda row: row["bm25"] or 0):
        best[row["question_row"]] = row
    assert (best[1]["row"], best[1]["document_id"], best[1]["question_id"]) == (7, "d7", "q1")
    assert (best[3]["row"], best[3]["document_id"]) == (38, "d38")
    assert {r["row"] % 5 for r in found if r["question_row"] == 0} == {1}
    assert sorted(r["row"] for r in found if r["question_row"] == 4) == [4, 9, 14]
    assert index.documents == index.statistics.passages == 40
    assert selection == Selection(
        files=selection.files,
        questions=6,
        unmatched=1,
        errors=1,
        passages=40,
        pairs=len(found) - 2,
        named=0,
        own=0,
    )
    assert selection.saved == pytest.approx(1 - (len(found) - 2) / (6 * 40))


def test_runs_are_routed_questions_with_places(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str]
) -> None:
    _, selection = run(corpus, str(tmp_path / "out"))
    assert [Path(file).name for file in selection.files] == [f"run-00000{i}.parquet" for i in range(3)]
    assert CANDIDATES.names[: len(ASKED)] == ASKED.names
    for file in selection.files:
        table = pq.read_table(file)
        assert table.schema.equals(CANDIDATES)
        keys = [(row["row"], row["question_row"], row["start"] or 0) for row in table.to_pylist()]
        assert keys == sorted(keys)


def test_question_that_matches_nothing_keeps_one_line(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str]
) -> None:
    _, selection = run(corpus, str(tmp_path / "out"))
    lost = [row for row in read(selection) if row["row"] == -1]
    assert [(row["question"], row["error"]) for row in lost] == [("Zyzzyva?", None), (None, "unreadable")]
    assert all(row[name] is None for row in lost for name in ("document_id", "start", "end", "bm25"))


def test_passages_of_a_long_document_are_places_in_it(tmp_path: Path, here: list[str]) -> None:
    text = " ".join(f"word{i}" for i in range(95))
    files = [str(tmp_path / name) for name in ("d.parquet", "q.parquet")]
    pq.write_table(rows_of(DOCUMENTS, ["word60", text]), files[0])
    pq.write_table(rows_of(QUESTIONS, ["word60 word62 word64"]), files[1])
    config = CandidateConfig(candidates=9, passage_words=20, passage_overlap=10)
    _, selection = run((files[:1], files[1:]), str(tmp_path / "out"), config)
    found = read(selection)
    assert [row["row"] for row in found] == [0, 1, 1]
    for row in found[1:]:
        passage = text[row["start"] : row["end"]].split()
        assert len(passage) == 20
        assert {"word60", "word62", "word64"} <= set(passage)


def test_more_candidates_than_passages_are_those_that_match(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str]
) -> None:
    config = dataclasses.replace(CONFIG, candidates=1000)
    found = read(run(corpus, str(tmp_path / "out"), config)[1])
    assert [row["row"] for row in found if row["question_row"] == 0] == list(range(1, 40, 5))


@pytest.mark.parametrize("size", [1, 25, 1000])
def test_shards_do_not_change_what_is_selected(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str], size: int
) -> None:
    config = dataclasses.replace(CONFIG, documents_per_shard=size, questions_per_run=size)

    def by_question(selection: Selection) -> list[tuple[Any, ...]]:
        rows = (tuple(row.values()) for row in read(selection))
        return sorted(rows, key=lambda row: (row[1], row[0]))

    one, other = run(corpus, str(tmp_path / "one"))[1], run(corpus, str(tmp_path / "other"), config)[1]
    assert by_question(one) == by_question(other)


def test_interrupted_passes_continue_to_the_same_bytes(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str]
) -> None:
    index, selection = run(corpus, str(tmp_path / "out"))
    whole = content(tmp_path / "out")
    lost = [index.files[2], index.files[-1], selection.files[1]]
    for file in lost:
        Path(file).unlink()
    here.clear()
    assert run(corpus, str(tmp_path / "out")) == (index, selection)
    assert here == lost
    assert content(tmp_path / "out") == whole


def test_index_behind_a_url_gives_the_same_from_copies_that_go_with_the_last_selector(
    corpus: tuple[list[str], list[str]], tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    url = f"memory://{uuid.uuid4().hex}"
    index, selection = run(corpus, url)
    wanted = run(corpus, str(tmp_path / "out"))[1]
    assert read(selection) == read(wanted)
    selector = candidates.Selector(CONFIG, index)
    made, _ = selector(pq.read_table(corpus[1][0]).slice(0, CONFIG.questions_per_run))
    assert made.equals(pq.read_table(wanted.files[0]))
    copies = sorted(filter(None, content(tmp_path / "temporary").values()))  # locks are empty
    assert copies == sorted(map(storage.read_bytes, index.files))
    del selector
    assert not any(content(tmp_path / "temporary").values())


def test_unknown_language_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'klingon'"):
        build_index(["no such file"], str(tmp_path), CandidateConfig(language="klingon"))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"candidates": -1}, "candidates is -1"),
        ({"passage_overlap": 200}, "passage_overlap is 200; it must be below passage_words, 200"),
        ({"passage_words": 70000}, "passage_words is 70000; it must be below 65536"),
        ({"b": 1.5}, "b is 1.5"),
        ({"k1": -1.0}, "k1 is -1"),
    ],
)
def test_setting_that_cannot_be_is_refused_by_name(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        CandidateConfig(**wrong)


@pytest.mark.ray
def test_passes_run_on_ray(corpus: tuple[list[str], list[str]], tmp_path: Path, ray_cluster: None) -> None:
    config = dataclasses.replace(CONFIG, documents_per_shard=16, questions_per_run=3)
    index = build_index(corpus[0], str(tmp_path / "index"), config)
    selection = select(index, corpus[1], str(tmp_path / "asked"), config)
    table = pq.read_table(corpus[1][0]).slice(3)
    made, counts = candidates.Selector(config, index)(table)
    assert pq.read_table(selection.files[1]).equals(made)
    assert counts["pairs"] == sum(row["row"] >= 0 for row in made.to_pylist())
    assert (selection.questions, selection.passages) == (6, 40)
