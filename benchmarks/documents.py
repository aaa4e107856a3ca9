"""How like its known text each file under tests/documents is read, how fast, and how fast it is answered.

    python benchmarks/documents.py [--skip pipeline] [--output benchmarks/results/documents.json]

The similarity is 1 - edit distance / length of the longer text, with white space of any kind taken as one
space. The plain loop is pypdfium2's own text of each page, which has neither boxes nor paragraphs, and keeps
heads and feet of pages. Answering is compared with transformers' pipeline on the text of the plain loop: same
model, precision and threads.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
from machine import machine, show
from peers.environment import interpreter
from peers.process import Process, Reply

from tinyqa_ray.core import bundled
from tinyqa_ray.documents import read_document, read_isolated

FILES = Path(__file__).parents[1] / "tests" / "documents" / "files"
LONG_PAGES = 200
_READINGS = 10
ASKED = {
    "Who opens the sluice once the ebb has begun?": "Ines Adair",
    "In which year did the mill burn down?": "1809",
    "At how many metres are the gates closed?": "2.4",
    "Which carpenter repaired the last wheel?": "Aldous Finch",
}
"""Questions about the story that most of the files tell, and what an answer must hold."""


def similarity(one: str, other: str) -> float:
    """1 - edit distance (Levenshtein, 1966) / length of the longer text, white space aside."""
    one, other = " ".join(one.split()), " ".join(other.split())
    codes = np.array([ord(each) for each in other])
    before = np.arange(len(codes) + 1)
    places = np.arange(len(codes) + 1)
    for number, letter in enumerate(one, 1):
        row = np.empty_like(before)
        row[0] = number
        row[1:] = np.minimum(before[1:] + 1, before[:-1] + (codes != ord(letter)))
        # An insertion costs one a step to the right: a running minimum once that is subtracted.
        before = np.minimum.accumulate(row - places) + places
    return 1 - float(before[-1]) / max(len(one), len(other), 1)


def long_pdf() -> bytes:
    """The pages of all files, again and again, as one file."""
    made = pypdfium2.PdfDocument.new()
    sources = [
        pypdfium2.PdfDocument(path.with_suffix("").read_bytes()) for path in FILES.glob("*.pdf.expected")
    ]
    while len(made) < LONG_PAGES:
        for source in sources:
            made.import_pages(source)
    made.save(sink := io.BytesIO())
    return sink.getvalue()


def plain_text(data: bytes) -> str:
    """What pypdfium2 gives by itself."""
    with pypdfium2.PdfDocument(data) as document:
        return "\n".join(page.get_textpage().get_text_range() for page in document).replace("\ufffe", "")


def similarities() -> dict[str, Any]:
    """Similarity of every file and, for PDF, of the plain loop."""
    found: dict[str, Any] = {}
    for expected in sorted(FILES.glob("*.expected")):
        path = expected.with_suffix("")
        text, data = expected.read_text(encoding="utf-8"), path.read_bytes()
        document = read_document(path.name, data)
        found[path.name] = {"similarity": round(similarity(document.text, text), 4)}
        if path.suffix == ".pdf":
            found[path.name]["plain_loop"] = round(similarity(plain_text(data), text), 4)
    return found


def core_seconds() -> float:
    """Seconds of a core so far: of this process, and of those that read for it, to hundredths.

    Unlike the clock's, they hardly depend on what else the machine does.
    """
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes()
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == os.getpid() and b"tinyqa_ray.documents.worker" in line:
                ticks += int(stat[11]) + int(stat[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def speed(rounds: int) -> dict[str, Any]:
    """Pages per second of a core, and what our layout and the process of its own cost; medians."""
    long, one = long_pdf(), (FILES / "browser.pdf").read_bytes()
    pages = len(read_isolated("a.pdf", long).places.pages)
    works: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain_text(long),
        "ours": lambda: read_document("a.pdf", long),
        "isolated": lambda: read_isolated("a.pdf", long),
        "ours, one page": lambda: [read_document("a.pdf", one) for _ in range(100)],
        "isolated, one page": lambda: [read_isolated("a.pdf", one) for _ in range(100)],
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        # In turns, so that what else the machine does falls on all.
        for name, work in works.items():
            began = core_seconds()
            work()
            took[name].append(core_seconds() - began)

    def over(name: str, other: str) -> float:
        ratios = [a / b for a, b in zip(took[name], took[other], strict=True)]
        return round(statistics.median(ratios), 2)

    return {
        "pdf_pages": pages,
        "pdf_pages_per_core_s": round(pages / statistics.median(took["isolated"]), 1),
        "pdf_time_over_plain_loop": over("ours", "plain"),
        "isolated_time_over_same_process": over("isolated", "ours"),
        "isolated_time_over_same_process_one_page": over("isolated, one page", "ours, one page"),
    }


def answering(threads: int, rounds: int, pipeline: str | None) -> dict[str, Any]:
    """Seconds of a core from bytes to answers, and how many are right, beside transformers' pipeline."""
    stories = [
        expected.with_suffix("")
        for expected in sorted(FILES.glob("*.pdf.expected"))
        if all(answer in expected.read_text(encoding="utf-8") for answer in ASKED.values())
    ]
    texts = {
        "ours": [read_document(path.name, path.read_bytes()).text for path in stories],
        "pipeline": [plain_text(path.read_bytes()) for path in stories],
    }
    reading: dict[str, Callable[[], object]] = {
        "ours": lambda: [read_isolated(path.name, path.read_bytes()) for path in stories],
        "pipeline": lambda: [plain_text(path.read_bytes()) for path in stories],
    }
    peers = {"ours": ("tinyqa_reader", sys.executable)}
    if pipeline is not None:
        peers["pipeline"] = ("transformers_pipeline", pipeline)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    right = {}
    with ExitStack() as stack:
        processes = {}
        for name, (module, python) in peers.items():
            queries = [(question, [text]) for text in texts[name] for question in ASKED]
            job = {
                "model": bundled.asset(bundled.MODEL),
                "device": "cpu",
                "precision": "fp32",
                "threads": threads,
                "workloads": {"pairs": queries},
            }
            processes[name] = stack.enter_context(Process(module, job, python))
        for number in range(rounds + 1):  # the first warms up
            for name, process in processes.items():
                began = core_seconds()
                for _ in range(_READINGS):  # one is near the clock's ticks
                    reading[name]()
                read_s = (core_seconds() - began) / _READINGS
                reply = process.ask("pairs", batch_size=16)
                right[name] = _right(reply)
                if number:
                    seconds[name].append((read_s, reply.cpu_seconds))
    figures: dict[str, Any] = {
        "files": len(stories),
        "questions": len(ASKED),
        "right": right,
        "reading_share_of_ours": round(statistics.median(a / (a + b) for a, b in seconds["ours"]), 3),
    }
    if pipeline is not None:
        ratios = [sum(b) / sum(a) for a, b in zip(seconds["ours"], seconds["pipeline"], strict=True)]
        figures["times_as_fast_as_pipeline"] = round(statistics.median(ratios), 2)
    return figures


def _right(reply: Reply) -> int:
    wanted = [*ASKED.values()] * (reply.pairs // len(ASKED))
    return sum(gold in (answer or "") for gold, answer in zip(wanted, reply.result, strict=True))


def main() -> None:
    """Print one line a file, then one JSON line, and write it where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--environments", default="runs/benchmarks/environments")
    parser.add_argument("--skip", action="append", default=[], choices=["pipeline"])
    arguments = parser.parse_args()
    pipeline = None if arguments.skip else interpreter("pipeline", Path(arguments.environments))
    files = similarities()
    figures = {
        "files": files,
        "mean_similarity": round(statistics.fmean(each["similarity"] for each in files.values()), 4),
        **speed(arguments.repeats),
        "answering": answering(arguments.threads, arguments.repeats, pipeline),
    }
    output = arguments.output
    for name, each in figures["files"].items():
        beside = f"  (pypdfium2's own {each['plain_loop']:.4f})" if "plain_loop" in each else ""
        print(f"{name:28} {each['similarity']:.4f}{beside}")
    show("documents", figures)
    if output:
        Path(output).write_text(
            json.dumps({"benchmark": "documents", **figures, "machine": machine()}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
