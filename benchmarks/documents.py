"""How like its known text each file under tests/documents is read, and how fast, against a plain loop.

    python benchmarks/documents.py [--output benchmarks/results/documents.json]

The similarity is 1 - edit distance / length of the longer text, with white space of any kind taken as one
space. The plain loop is pypdfium2's own text of each page, which has neither boxes nor paragraphs, and keeps
heads and feet of pages.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pypdfium2
from machine import machine, show

from tinyqa_ray.documents import read_document

FILES = Path(__file__).parents[1] / "tests" / "documents" / "files"


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


def plain_pdf(path: Path) -> str:
    """What pypdfium2 gives by itself."""
    with pypdfium2.PdfDocument(path.read_bytes()) as document:
        return "\n".join(page.get_textpage().get_text_range() for page in document).replace("\ufffe", "")


def seconds(work: Any, repeats: int) -> float:
    """Of one call, the shortest of several."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def measured() -> dict[str, Any]:
    """Similarity of every file and, for PDF, of the plain loop; and the time of a page."""
    found: dict[str, Any] = {}
    ours_s = plain_s = pages = 0.0
    for expected in sorted(FILES.glob("*.expected")):
        path = expected.with_suffix("")
        text, data = expected.read_text(encoding="utf-8"), path.read_bytes()
        document = read_document(path.name, data)
        found[path.name] = {"similarity": round(similarity(document.text, text), 4)}
        if path.suffix == ".pdf":
            found[path.name]["plain_loop"] = round(similarity(plain_pdf(path), text), 4)
            # In turns, so that what else the machine does falls on both.
            for _ in range(5):
                ours_s += seconds(lambda name=path.name, data=data: read_document(name, data), 1)
                plain_s += seconds(lambda path=path: plain_pdf(path), 1)
                pages += len(document.places.pages)
    return {
        "files": found,
        "mean_similarity": round(float(np.mean([each["similarity"] for each in found.values()])), 4),
        "pdf_pages_per_s": round(pages / ours_s, 1),
        "pdf_time_over_plain_loop": round(ours_s / plain_s, 2),
    }


def main() -> None:
    """Print one line a file, then one JSON line, and write it where asked to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    output = parser.parse_args().output
    figures = measured()
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
