from __future__ import annotations

import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from samples import read, written

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus import files

pytest.importorskip("pypdfium2", reason="needs the extra documents")

MADE = Path(__file__).parents[1] / "documents" / "files"


@pytest.mark.parametrize("place", ["local", "memory"])
def test_files_become_rows_in_the_order_of_their_names(place: str, tmp_path: Path, here: list[str]) -> None:
    root = str(tmp_path / "in") if place == "local" else f"memory://{uuid.uuid4().hex}/in"
    for name in ("browser.pdf", "slides.pptx", "plain.txt", "encrypted.pdf"):
        written(f"{root}/{name}", (MADE / name).read_bytes())
    written(f"{root}/.hidden.pdf", b"x")
    found = files.find(root)
    assert found is not None
    made = files.convert(found, str(tmp_path / "texts"), str(tmp_path / "list.parquet"))
    rows = read(made.files)
    names = ["browser.pdf", "encrypted.pdf", "plain.txt", "slides.pptx"]
    assert [(row["row"], row["document_id"]) for row in rows] == list(enumerate(names))
    assert [row["text"] is None for row in rows] == [False, True, False, False]
    assert [len(row["pages"] or []) for row in rows] == [1, 0, 0, 2]
    assert rows[0]["pieces"][0]["start"] == 0
    assert pq.read_schema(made.files[0]).equals(files.TEXTS, check_metadata=False)
    assert (made.pages, made.pages_without_text, made.starts) == (3, 0, (0,))


def test_shards_are_bounded_by_files_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FILES_A_SHARD", 3)
    monkeypatch.setattr(files, "_BYTES_A_SHARD", 100)
    assert files._cut([1, 1, 1, 1, 90, 20, 500, 1]) == [(0, 3), (3, 5), (5, 6), (6, 7), (7, 8)]


def test_file_over_the_limit_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.storage, "read_bytes", lambda path: pytest.fail("was read"))
    document, error = files._read("a.pdf", 1 << 40, DocumentLimits())
    assert document is None
    assert error == "the file has 1099511627776 bytes, over the limit of 268435456"


def test_missing_library_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(f"{tmp_path}/in/a.pdf", b"x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = files.find(f"{tmp_path}/in")
    assert found is not None
    with pytest.raises(InputError, match=r"needs pypdfium2, which is not installed; pip install 'tinyqa-ray"):
        files.convert(found, str(tmp_path / "texts"), str(tmp_path / "list.parquet"))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
