"""A folder of mixed files, some of them bad, given to the command: rows, a page, errors, the same bytes."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path

import fire
import pyarrow.dataset as pads
import pytest

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("lxml", reason="needs the extra documents")

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
    pytest.mark.timeout(2400),
]

MADE = Path(__file__).parents[1] / "documents" / "files"
GOOD = ("browser.pdf", "divided-words.pdf", "owls.html", "kites.md", "bats.txt")
ERRORS = {
    "broken.docx": "the file is not a whole archive",
    "cut.pdf": "the file is not a whole PDF",
    "encrypted.pdf": "the file is encrypted",
    "latin.txt": "the file is not UTF-8 at byte 3",
    "greedy.html": "the file takes more than 128 MiB of memory",
    "bomb.docx": "the file unpacks to more than 8 MiB",
}
ASKED = ("Who opens the sluice?", "In which year did the mill burn down?", "Why is the moon so far away?")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    folder = tmp_path / "documents"
    folder.mkdir()
    for name in ("browser.pdf", "divided-words.pdf", "encrypted.pdf"):
        shutil.copy(MADE / name, folder / name)
    (folder / "owls.html").write_text("<p>Owls hunt at night.</p>")
    (folder / "kites.md").write_text("# Kites\n\nA kite builds its nest in a fork of a tree.")
    (folder / "bats.txt").write_text("Bats sleep in caves.")
    (folder / "broken.docx").write_bytes(b"PK\x03\x04 broken")
    (folder / "cut.pdf").write_bytes((MADE / "writer.pdf").read_bytes()[:5000])
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "greedy.html").write_text(
        "<p>" + "<b>mill</b>" * 20 + "</p>\n" + "<p><b>mill</b></p>" * 800_000
    )
    with zipfile.ZipFile(sink := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("word/document.xml", b" " * (1 << 24))
    (folder / "bomb.docx").write_bytes(sink.getvalue())
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": each}) + "\n" for each in ASKED))
    return [
        *("-m", "tinyqa_ray", "answer", "--documents", str(folder)),
        *("--questions", str(questions), "--top-k", "3", "--rows-per-shard", "4", "--threads", "1"),
        "--evidence",
        *("--max-unpacked-bytes", str(1 << 23), "--max-file-memory-bytes", str(1 << 27), "--output"),
    ]


def content(output: Path) -> dict[str, bytes]:
    found = [*output.glob("texts/*.parquet"), *output.glob("answers/*.parquet")]
    return {str(path.relative_to(output)): path.read_bytes() for path in found}


def ran(command: list[str], output: Path) -> None:
    with fire.Driver(*command, str(output)) as driver:
        driver.process.wait(600)  # a busy machine starts Ray and the model slowly
        code, printed = driver.result()
    assert code == 0, printed


def test_bad_files_are_rows_and_killed_run_goes_on_to_the_same_bytes(
    command: list[str], tmp_path: Path
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    ran(command, calm)
    rows = pads.dataset(calm / "answers").to_table().to_pylist()
    wrong = {row["document_id"]: row["error"] for row in rows if row["error"]}
    assert {name: error[: len(ERRORS[name])] for name, error in wrong.items()} == ERRORS
    answered = [row for row in rows if row["answer"] is not None]
    assert {row["question"] for row in answered} <= set(ASKED)
    assert {row["document_id"] for row in answered} <= set(GOOD)
    texts = {row["document_id"]: row["text"] for row in pads.dataset(calm / "texts").to_table().to_pylist()}
    assert all(texts[row["document_id"]][row["start"] : row["end"]] == row["answer"] for row in answered)
    places = [place for row in answered for place in row["places"]]
    assert all(texts[each["document_id"]][each["start"] : each["end"]] == each["answer"] for each in places)
    assert all(each["answer"] in each["sentence"] for each in places)
    page = (calm / "report.html").read_text()
    best = {row["question"]: row["answer"] for row in rows if row["question"] and row["rank"] == 0}
    assert "Ines Adair" in best[ASKED[0]]
    assert best[ASKED[1]] == "1809"
    # Some questions are shown as examples.
    shown = page.count("of browser.pdf, page 1, score")
    assert shown > 0
    assert page.count("page 1 of browser.pdf, the answer marked") == shown, "a picture for each"
    assert "<mark" in page
    for place in ("texts/part-*.parquet", "_work/found/*.parquet"):
        with fire.Driver(*command, str(killed)) as driver:
            fire.wait_for(f"{place} in {killed}", lambda place=place: [*killed.glob(place)])
            assert driver.process.poll() is None
            driver.kill_all()
        assert not (killed / "_SUCCESS.json").exists()
    ran(command, killed)
    assert content(killed) == content(calm)
