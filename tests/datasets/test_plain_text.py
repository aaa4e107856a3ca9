from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets import plain_text, squad

TEXT = "The owl hunts at dusk.\nIt eats mice.\n\nRye bread keeps.\n \t \n\n  Café « Été ».  \n"
PARAGRAPHS = ["The owl hunts at dusk.\nIt eats mice.", "Rye bread keeps.", "Café « Été »."]


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "text") if request.param == "local" else f"memory://{uuid.uuid4().hex}/text"


def written(folder: str, name: str, data: bytes) -> str:
    path = storage.join(folder, name)
    storage.write_atomic(path, data)
    return path


def read(file: str, *, at_once: int = 1 << 20, longest: int = 1 << 15) -> list[str]:
    with mock.patch.multiple(plain_text, _READ=at_once, LONGEST=longest):
        return list(plain_text.paragraphs(file))


def plain(text: str) -> list[str]:
    """The paragraphs of a text that is held in memory, line by line."""
    found: list[list[str]] = [[]]
    for line in text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").split("\n"):
        found += [[]] if not line.strip() else []
        found[-1] += [line] if line.strip() else []
    return ["\n".join(lines).strip() for lines in found if lines]


def test_paragraph_is_a_run_of_lines_that_are_not_blank(folder: str) -> None:
    assert read(written(folder, "a.txt", TEXT.encode())) == PARAGRAPHS


@pytest.mark.parametrize(
    "data",
    [
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.rstrip().encode(),
        f"\n\n \n{TEXT}\n\n\n".encode(),
    ],
    ids=["crlf", "cr", "byte order mark", "no trailing newline", "blank lines around"],
)
@pytest.mark.parametrize("at_once", [1, 3, 1 << 20])
def test_line_ends_and_marks_change_no_paragraph(tmp_path: Path, data: bytes, at_once: int) -> None:
    assert read(written(str(tmp_path), "a.txt", data), at_once=at_once) == PARAGRAPHS


SOME = st.lists(st.sampled_from(["owl", "é", "📚", " ", "\n", "\r\n", "\r", "\t", "\u00a0", "\u2028"])).map(
    "".join
)


@settings(deadline=None, max_examples=150)
@given(text=SOME, at_once=st.integers(1, 9))
def test_paragraphs_do_not_depend_on_how_much_is_read_at_once(text: str, at_once: int) -> None:
    file = written("memory://texts", "read.txt", text.encode())
    assert read(file, at_once=at_once) == plain(text)


@settings(deadline=None, max_examples=150)
@given(text=SOME, at_once=st.integers(1, 9), longest=st.integers(1, 12))
@example(text="owlowl \n\nowl", at_once=1, longest=6)
@example(text="owlowlo", at_once=7, longest=6)
def test_long_paragraph_is_parted_without_loss(text: str, at_once: int, longest: int) -> None:
    file = written("memory://texts", "long.txt", text.encode())
    parts = read(file, at_once=at_once, longest=longest)
    assert parts == read(file, longest=longest)
    assert all(0 < len(part) <= longest for part in parts)
    assert re.sub(r"\s", "", "".join(parts)) == re.sub(r"\s", "", text)


@settings(deadline=None, max_examples=80)
@given(words=st.lists(st.text("abc", min_size=1, max_size=5), min_size=1), longest=st.integers(5, 12))
def test_long_paragraph_is_parted_between_words(words: list[str], longest: int) -> None:
    file = written("memory://texts", "words.txt", " ".join(words).encode())
    assert [word for part in read(file, longest=longest) for word in part.split()] == words


@settings(deadline=None, max_examples=150)
@given(
    data=st.lists(st.sampled_from([b"owl", "é".encode(), "📚".encode(), b"\xff", b"\xe2\x82", b"\n"])).map(
        b"".join
    )
)
def test_bytes_that_are_not_utf8_are_refused_with_their_place(data: bytes) -> None:
    place = None
    try:
        data.decode()
    except UnicodeDecodeError as error:
        place = error.start
    assume(place is not None)
    file = written("memory://texts", "bad.txt", data)
    for at_once in (1, 4, 1 << 20):
        with (
            mock.patch.object(plain_text, "_READ", at_once),
            pytest.raises(InputError, match=rf"bad\.txt: not UTF-8 at byte {place};"),
        ):
            plain_text.check_texts(file)


def test_bad_file_of_a_folder_is_named_with_its_byte(folder: str) -> None:
    written(folder, "a.txt", b"fine")
    bad = written(folder, "deep/b.txt", b"\xef\xbb\xbffine\n\n" + b"x" * 100 + "Été".encode("latin-1"))
    with pytest.raises(InputError, match=f"^{re.escape(bad)}: not UTF-8 at byte 109; save it as UTF-8 text$"):
        plain_text.check_texts(folder)


@pytest.mark.parametrize("data", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_empty_text_is_refused(folder: str, data: bytes) -> None:
    file = written(folder, "a.txt", data)
    for given_data in (file, folder):
        with pytest.raises(InputError, match="holds no text"):
            plain_text.check_texts(given_data)
    written(folder, "b.txt", b"An owl.")
    plain_text.check_texts(folder)


def test_absent_text_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        plain_text.check_texts(storage.join(folder, "a.txt"))


def test_names_ending_in_txt_and_folders_of_them_are_text(folder: str) -> None:
    for name in ("a.txt", "a.json", "deep/b.txt", "json/a.json", "both/a.txt", "both/part.parquet"):
        written(folder, name, b"x")
    for stage in ("started", "finished"):
        written(folder, f"{stage}/vocabulary.txt", b"x")
    written(folder, "started/_STARTED.json", b"{}")
    written(folder, "finished/_SUCCESS.json", b"{}")
    told = {name: plain_text.is_text(storage.join(folder, name)) for name in ("a.txt", "absent.txt", "deep")}
    assert told == dict.fromkeys(told, True)
    others = ("a.json", "absent.json", "json", "absent", "both", "started", "finished")
    told = {name: plain_text.is_text(storage.join(folder, name)) for name in others}
    assert told == dict.fromkeys(told, False)
    assert plain_text.is_text(folder)
    assert not plain_text.is_text("squad_v2")


@pytest.mark.parametrize("slash", ["", "/"])
def test_folder_is_read_in_the_order_of_names_and_names_its_paragraphs(folder: str, slash: str) -> None:
    for name, text in (("b.txt", "three"), ("a.txt", "one\n\ntwo"), ("b/c.txt", "four"), ("z.md", "no")):
        written(folder, name, text.encode())
    (table,) = plain_text.paragraph_tables(folder + slash)
    assert table.schema == squad.PARAGRAPHS
    read = squad.from_table(table)
    assert {p.paragraph_id: p.context for p in read} == {
        "a.txt#0": "one",
        "a.txt#1": "two",
        "b.txt#0": "three",
        "b/c.txt#0": "four",
    }
    assert [p.paragraph_id for p in read] == sorted(p.paragraph_id for p in read if p.questions == ())
    (alone,) = plain_text.paragraph_tables(storage.join(folder, "a.txt"))
    assert alone == table.slice(0, 2)


def test_tables_hold_every_paragraph_once_whatever_their_size(tmp_path: Path) -> None:
    for name in "ab":
        written(str(tmp_path), f"{name}.txt", "\n\n".join(f"paragraph {i}" for i in range(40)).encode())
    (whole,) = plain_text.paragraph_tables(str(tmp_path))
    for characters in (1, 100, 10_000):
        with mock.patch.object(plain_text, "_TABLE", characters):
            parts = list(plain_text.paragraph_tables(str(tmp_path)))
        assert pa.concat_tables(parts).combine_chunks() == whole
        assert len(parts) == {1: 80, 10_000: 1}.get(characters, len(parts))


def test_text_is_read_no_further_than_the_paragraph_asked_for(tmp_path: Path) -> None:
    # A line of 64 MB without an end, as a file of many GB would be.
    file = written(str(tmp_path), "a.txt", b"word " * (1 << 23))
    pieces = 0

    def counted(name: str) -> Iterator[str]:
        nonlocal pieces
        for piece in decoded(name):
            pieces += 1
            yield piece

    decoded = plain_text._decoded
    with mock.patch.object(plain_text, "_decoded", counted):
        first = next(plain_text.paragraphs(file))
    assert len(first) <= plain_text.LONGEST
    assert pieces == 1


def test_paragraphs_of_text_are_a_folder_of_paragraphs(tmp_path: Path) -> None:
    file = written(str(tmp_path), "a.txt", TEXT.encode())
    (tmp_path / "made").mkdir()
    pq.write_table(next(plain_text.paragraph_tables(file)), tmp_path / "made" / "part.parquet")
    assert [p.context for p in squad.read_squad(str(tmp_path / "made"))] == PARAGRAPHS
