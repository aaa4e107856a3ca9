from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("lxml", reason="needs the extra documents")

from tinyqa_ray.answer import FOLDER, answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.answer.rows import PLACED
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, DocumentLimits, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import files
from tinyqa_ray.documents import isolated, read_document
from tinyqa_ray.models.settings import ModelSettings, write_settings

MADE = Path(__file__).parents[1] / "documents" / "files"
GOOD = ("browser.pdf", "divided-words.pdf", "slides.pptx", "page.html", "notes.md", "plain.txt", "book.epub")
ERRORS = {
    "bad/broken.docx": "the file is not a whole archive",
    "bad/encrypted.pdf": "the file is encrypted; save it without a password",
    "bad/latin.txt": "the file is not UTF-8 at byte 3; save it as UTF-8",
}
ASKING = ["Who opens the sluice?", "How long do the stones turn?", "What was finished?"]


@pytest.fixture(autouse=True)
def _no_ray(here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "connected", contextlib.nullcontext)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of all formats, three of them bad, and one that is no document."""
    made = tmp_path / "documents"
    (made / "bad").mkdir(parents=True)
    for name in GOOD:
        shutil.copy(MADE / name, made / name)
    shutil.copy(MADE / "encrypted.pdf", made / "bad")
    (made / "bad" / "broken.docx").write_bytes(b"PK\x03\x04 broken")
    (made / "bad" / "latin.txt").write_bytes(b"caf\xe9")
    (made / "picture.png").write_bytes(b"no document")
    return made


@pytest.fixture
def config(tiny_bert: str, folder: Path, tmp_path: Path) -> AnswerConfig:
    """Each question of all files."""
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": each}) + "\n" for each in ASKING))
    return AnswerConfig(
        model=tiny_bert,
        documents=str(folder),
        questions=str(questions),
        window=WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20),
        top_k=5,
        rows_per_shard=4,
        threads=1,
    )


def routed(config: AnswerConfig, tmp_path: Path) -> AnswerConfig:
    asked = [
        {"id": f"{name} {number}", "question": question, "document_id": name}
        for name in (*GOOD, *ERRORS)
        for number, question in enumerate(ASKING)
    ]
    path = tmp_path / "routed.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in asked))
    return replace(config, questions=str(path))


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pads.dataset(str(folder / name)).to_table().to_pylist()
    return rows


def content(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_answers_of_files_say_where_they_stand(config: AnswerConfig, tmp_path: Path) -> None:
    indexed = replace(config, selection=CandidateConfig(candidates=9), index=str(tmp_path / "index"))
    for number, each in enumerate((config, routed(config, tmp_path), indexed)):
        out = tmp_path / str(number)
        report = answer(replace(each, jsonl=True), str(out))
        texts = {row["document_id"]: row for row in table(out, "texts")}
        assert set(texts) == {*GOOD, *ERRORS}
        rows = table(out, FOLDER)
        spans = [row for row in rows if row["answer"] is not None]
        assert len(spans) > len(ASKING)
        for row in spans:
            name, start, end = row["document_id"], row["start"], row["end"]
            assert texts[name]["text"][start:end] == row["answer"]
            document = read_document(name, (MADE / name).read_bytes())
            assert document.text == texts[name]["text"]
            assert row["page"] == document.places.page(start)
            boxes = [asdict(box) for box in document.places.boxes(start, end)]
            # The texts keep boxes in half the precision.
            assert [pytest.approx(box, abs=0.011) for box in row["boxes"] or []] == boxes
            assert (row["boxes"] is not None) == name.endswith(".pdf")
        wrong = {row["document_id"]: row["error"] for row in rows if row["document_id"] in ERRORS}
        assert {name: error[: len(ERRORS[name])] for name, error in wrong.items()} == ERRORS
        assert (report.documents, report.unreadable_documents, report.pages) == (10, 3, 7)
        lines = [json.loads(line) for path in (out / "answers-jsonl").iterdir() for line in path.open()]
        assert sorted(str(line["boxes"]) for line in lines) == sorted(str(row["boxes"]) for row in rows)


def test_places_of_evidence_in_files_say_their_page(config: AnswerConfig, tmp_path: Path) -> None:
    write_settings(str(tmp_path / "fitted"), ModelSettings(no_answer_threshold=0.95))
    asked = replace(config, evidence=True, settings=str(tmp_path / "fitted"), jsonl=True)
    pages = set()
    for number, each in enumerate((asked, routed(asked, tmp_path))):
        out = tmp_path / str(number)
        answer(each, str(out))
        rows = table(out, FOLDER)
        assert {row["document_id"] for row in rows if row["error"]} == set(ERRORS)
        for place in (place for row in rows for place in row["places"] or ()):
            name, start, end = place["document_id"], place["start"], place["end"]
            document = read_document(name, (MADE / name).read_bytes())
            assert document.text[start:end] == place["answer"]
            assert document.text[place["sentence_start"] :].startswith(place["sentence"])
            assert place["page"] == document.places.page(start)
            pages.add(place["page"])
        lines = [json.loads(line) for path in (out / "answers-jsonl").iterdir() for line in path.open()]
        assert sorted(str(line["places"]) for line in lines) == sorted(str(row["places"]) for row in rows)
    assert len(pages) > 2


@pytest.mark.parametrize("mode", ["every", "routed", "candidates"])
def test_run_over_files_killed_after_any_file_goes_on_to_the_same_bytes(
    mode: str,
    config: AnswerConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_with_kills: Callable[[Callable[[], Any], Sequence[int]], int],
) -> None:
    monkeypatch.setattr(files, "_FILES_A_SHARD", 3)
    config = {
        "every": config,
        "routed": routed(config, tmp_path),
        "candidates": replace(config, selection=CandidateConfig(candidates=3)),
    }[mode]
    report = answer(config, str(tmp_path / "calm"))
    assert run_with_kills(lambda: answer(config, str(tmp_path / "killed")), (1, 2, 3, 5, 8, 1000)) >= 4
    assert answer(config, str(tmp_path / "killed")) == report
    made = content(tmp_path / "calm")
    assert sum(name.startswith("texts/") for name in made) == 4
    assert content(tmp_path / "killed") == made


def test_files_that_hang_kill_or_fill_are_error_rows_and_their_neighbours_are_read(
    config: AnswerConfig, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "COMMAND", (sys.executable, str(MADE.parent / "harmful.py")))
    isolated._end_all()
    for name in ("hang", "crash", "memory"):
        (folder / f"{name}.txt").write_text("x")
    limits = DocumentLimits(max_file_s=5.0, max_file_memory_bytes=1 << 27)
    answer(replace(config, document_limits=limits), str(tmp_path / "out"))
    isolated._end_all()
    rows = table(tmp_path / "out", "texts")
    assert {row["document_id"] for row in rows if row["text"]} == set(GOOD)
    wrong = {row["document_id"]: row["error"] for row in rows if row["error"]}
    assert wrong.items() >= {
        ("hang.txt", "the file takes longer than 5 seconds"),
        ("crash.txt", "the file broke the process that read it"),
        ("memory.txt", "the file takes more than 128 MiB of memory"),
    }
    told = {row["document_id"] for row in table(tmp_path / "out", FOLDER) if row["error"]}
    assert told == {"hang.txt", "crash.txt", "memory.txt", *ERRORS}


def test_run_goes_on_with_other_limits_of_time_but_not_of_pages(config: AnswerConfig, tmp_path: Path) -> None:
    answer(config, str(tmp_path / "out"))
    other = replace(config, document_limits=DocumentLimits(max_file_s=7.0, max_file_memory_bytes=1 << 29))
    answer(other, str(tmp_path / "out"))
    with pytest.raises(InputError, match="document_limits"):
        answer(replace(config, document_limits=DocumentLimits(max_file_pages=3)), str(tmp_path / "out"))


def test_pattern_names_the_files_that_are_read(config: AnswerConfig, folder: Path, tmp_path: Path) -> None:
    config = replace(config, documents=f"{folder}/**/*.pdf")
    answer(config, str(tmp_path / "out"))
    names = [row["document_id"] for row in table(tmp_path / "out", "texts")]
    assert names == ["bad/encrypted.pdf", "browser.pdf", "divided-words.pdf"]
    (folder / "browser.pdf").unlink()
    with pytest.raises(InputError, match="content of documents"):
        answer(config, str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"matches no document; allowed are \.pdf"):
        answer(replace(config, documents=f"{folder}/*.xls"), str(tmp_path / "none"))


def test_changed_markdown_is_other_content(config: AnswerConfig, folder: Path, tmp_path: Path) -> None:
    """Beside a model, ``.md`` files do not count."""
    answer(config, str(tmp_path / "out"))
    (folder / "notes.md").write_text("Other notes.")
    with pytest.raises(InputError, match="content of documents"):
        answer(config, str(tmp_path / "out"))


def test_tables_beside_documents_are_refused_and_a_readme_beside_tables_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "An owl."}\n')
    (tmp_path / "README.md").write_text("About the rows.")
    assert files.find(str(tmp_path)) is None
    (tmp_path / "b.pdf").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds documents \(markdown, pdf\) and tables, such as a.jsonl"):
        files.find(str(tmp_path))


def test_folder_of_text_alone_is_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("An owl.")
    assert files.find(str(tmp_path)) is None


def test_report_shows_the_page_of_an_answer(config: AnswerConfig, tmp_path: Path) -> None:
    config = replace(routed(config, tmp_path), documents=f"{config.documents}/*.pdf")
    answer(config, str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert ", page 1," in page
    assert "<mark" in page
    assert page.count("<img src='data:image/png;base64,") >= 1
    assert "of browser.pdf, the answer marked" in page or "of divided-words.pdf, the answer marked" in page


def test_columns_of_tables_stay_as_they_were(config: AnswerConfig, tmp_path: Path) -> None:
    """A run that began with an older version goes on to files of one schema."""
    documents = tmp_path / "rows.jsonl"
    documents.write_text('{"id": 1, "text": "Ines Adair opens the sluice."}\n')
    answer(replace(config, documents=str(documents)), str(tmp_path / "out"))
    names = pads.dataset(str(tmp_path / "out" / FOLDER)).schema.names
    assert set(PLACED.names) - set(names) == {"page", "boxes"}
    assert not (tmp_path / "out" / "texts").exists()
