"""Files that hang, kill or fill the process that reads them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tinyqa_ray.core.errors import InputError

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("lxml", reason="needs the extra documents")

from tinyqa_ray.configs import DocumentLimits
from tinyqa_ray.documents import UnreadableError, isolated, marked_picture, read_document, read_isolated

FILES = Path(__file__).parent / "files"
HARMFUL = (sys.executable, str(Path(__file__).parent / "harmful.py"))
LIMITS = DocumentLimits(max_file_memory_bytes=1 << 27)
SHORT = {"hang": {"max_file_s": 0.5}, "endless": {"max_file_core_s": 0.5}}


@pytest.fixture
def harmful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some names do harm."""
    monkeypatch.setattr(isolated, "COMMAND", HARMFUL)
    isolated._end_all()
    yield
    isolated._end_all()


def running() -> int:
    (process,) = isolated._idle
    return process._popen.pid


@pytest.mark.parametrize("name", sorted(path.stem for path in FILES.glob("*.expected")))
def test_document_is_that_of_the_same_process(name: str) -> None:
    data = (FILES / name).read_bytes()
    here, there = read_document(name, data), read_isolated(name, data)
    assert there.text == here.text
    assert [page.page for page in there.places.pages] == [page.page for page in here.places.pages]
    ends = range(0, len(here.text), 17)
    assert [there.places.boxes(at, at + 30) for at in ends] == [here.places.boxes(at, at + 30) for at in ends]


@pytest.mark.usefixtures("harmful")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("killed", r"broke the process that read it"),
        ("crash", r"broke the process that read it"),
        ("memory", r"takes more than 128 MiB of memory"),
        ("hang", r"takes longer than 0.5 seconds"),
        ("endless", r"takes longer than 0.5 seconds of a core"),
    ],
)
def test_file_that_does_harm_is_unreadable_and_its_neighbours_are_read(name: str, reason: str) -> None:
    assert read_isolated("before.txt", b"An owl.", LIMITS).text == "An owl."
    with pytest.raises(UnreadableError, match=f"^{reason}$"):
        read_isolated(f"{name}.txt", b"x", replace(LIMITS, **SHORT.get(name, {})))
    assert read_isolated("after.txt", b"An owl.", LIMITS).text == "An owl."


@pytest.mark.usefixtures("harmful")
def test_process_is_kept_for_the_next_file_unless_it_died() -> None:
    read_isolated("a.txt", b"An owl.", LIMITS)
    first = running()
    with pytest.raises(UnreadableError, match="not UTF-8"):
        read_isolated("b.txt", b"caf\xe9", LIMITS)
    read_isolated("noise.txt", b"An owl.", LIMITS)
    assert running() == first
    with pytest.raises(UnreadableError):
        read_isolated("crash.txt", b"x", LIMITS)
    assert not isolated._idle
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.usefixtures("harmful")
def test_file_that_finds_a_damaged_process_is_tried_in_a_fresh_one() -> None:
    read_isolated("a.txt", b"An owl.", LIMITS)
    os.kill(running(), 9)
    assert read_isolated("b.txt", b"A kite.", LIMITS).text == "A kite."


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits memory in this way")
def test_real_file_that_needs_too_much_memory_is_refused() -> None:
    page = ("<p>" + "<b>mill</b>" * 20 + "</p>").encode() * 20_000
    with pytest.raises(UnreadableError, match=r"^takes more than 64 MiB of memory$"):
        read_isolated("a.html", page, DocumentLimits(max_file_memory_bytes=1 << 26))
    assert read_isolated("b.html", b"<p>mill", DocumentLimits(max_file_memory_bytes=1 << 26)).text == "mill"


def test_real_file_that_takes_too_long_is_refused() -> None:
    page = b"<p>mill</p>" * 2_000_000
    began = time.monotonic()
    with pytest.raises(UnreadableError, match=r"takes longer than 0\.3 seconds of a core"):
        read_isolated("a.html", page, DocumentLimits(max_file_core_s=0.3))
    assert time.monotonic() - began < 60


def test_mistake_of_the_user_stays_one() -> None:
    with pytest.raises(InputError, match=r"a\.xls: has no suffix of a document"):
        read_isolated("a.xls", b"x")
    with pytest.raises(UnreadableError, match="has 3 bytes, over the limit of 2"):
        read_isolated("a.txt", b"owl", DocumentLimits(max_file_bytes=2))


def test_page_is_drawn_in_the_other_process() -> None:
    data = (FILES / "divided-words.pdf").read_bytes()
    boxes = read_isolated("a.pdf", data).places.boxes(0, 20)
    assert marked_picture(data, boxes).startswith("data:image/png;base64,")
    with pytest.raises(UnreadableError, match="cannot be drawn"):
        marked_picture(b"no PDF", boxes)


def test_threads_read_at_the_same_time_in_processes_of_their_own() -> None:
    isolated._end_all()
    data = (FILES / "divided-words.pdf").read_bytes()
    wanted = read_document("a.pdf", data).text
    texts: list[str] = []

    def work() -> None:
        texts.extend(read_isolated("a.pdf", data).text for _ in range(3))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [wanted] * 9
    assert 1 <= len(isolated._idle) <= 3


def test_process_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated._end_all()
    monkeypatch.setattr(isolated, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
    with pytest.raises(ChildProcessError, match="did not start"):
        read_isolated("a.txt", b"An owl.")


def test_process_ends_with_the_one_that_started_it() -> None:
    script = (
        "import os\nfrom tinyqa_ray.documents import isolated\n"
        "isolated.read_isolated('a.txt', b'x')\nprint(isolated._idle[0]._popen.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    place = Path(f"/proc/{int(ran.stdout)}")
    end = time.monotonic() + 20
    while place.exists() and "\nState:\tZ" not in place.joinpath("status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
