"""The tables of docs/scale.md show what was measured, and what follows from it."""

from __future__ import annotations

import json
import re
from typing import Any

import exchange
import pages
import pytest

PAGE = (pages.ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
NAMES = {
    "none, all rows": "as they are, all rows",
    "none": "as they are",
    "none, frozen": "as they are, word embeddings frozen",
    "bf16, frozen": "bf16, word embeddings frozen",
    "powersgd 32, frozen": "rank 32, word embeddings frozen",
    **{f"powersgd {rank}": f"rank {rank}" for rank in (4, 16, 32)},
}


def results(name: str) -> Any:
    return json.loads((pages.ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def row(start: str) -> list[float]:
    """The numbers of the row that begins so, without those of its first cell."""
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {start} |"))
    cells = line.strip("|").split("|")[1:]
    return [float(each.replace(",", "")) for cell in cells for each in re.findall(r"\d[\d,]*\.?\d*", cell)]


@pytest.mark.parametrize("name", results("exchange")["wire"]["settings"])
def test_costs_of_an_exchange_follow_from_the_bytes_that_were_measured(name: str) -> None:
    measured = results("exchange")
    if name == "bf16, all rows":
        return  # not on the page
    sent = measured["wire"]["settings"][name]
    fast, slow = exchange.estimate({name: sent})[name].values()
    assert measured["estimated: tinyroberta on four p3.2xlarge"][name] == {
        "10 Gbit/s": fast,
        "2.5 Gbit/s": slow,
    }
    shown = row(NAMES.get(name, name))
    assert shown == pytest.approx(
        [
            round(sent["sent_mb"], 1),
            sent["fewer_times"],
            round(1.5 * sent["sent_mb"]),
            fast["exchange_s"],
            fast["intermediate_h"],
            fast["all_h"],
            fast["usd"],
            slow["all_h"],
        ],
        abs=0.06,
    )


@pytest.mark.parametrize(
    ("start", "setting"),
    [
        ("bf16, in training", "bf16"),
        ("low rank, 16 (the same share of a width of 384 as rank 32 of 768)", "powersgd 16"),
    ],
)
def test_cost_of_compression_is_what_was_measured(start: str, setting: str) -> None:
    lost = results("exchange")["training"]["less_than_none"][setting]
    lines = [line.strip("|").split("|") for line in PAGE.splitlines() if line.startswith(f"| {start} |")]
    (cells,) = (cells for cells in lines if len(cells) == 3)
    for cell, figure, places in zip(cells[1:], ("forced_f1", "loss"), (2, 3), strict=True):
        shown = [float(each) for each in cell.split("±")]
        assert shown == [round(lost[figure][name], places) for name in ("mean", "standard_error")]


def test_rates_are_those_measured() -> None:
    reader = results("reader")["models"]
    for start, speeds in zip(
        ("reading, 6×384, torch fp32 / OpenVINO fp32 / bf16 / int8", "reading, 6×768, the same"),
        reader,
        strict=True,
    ):
        engines = ("torch fp32", "export fp32", "export bf16", "export int8")
        expected = [speeds["pairs_per_s"]["pairs"][f"tinyqa {engine}"]["median"] for engine in engines]
        assert row(start) == pytest.approx(expected, abs=0.06)
    shares = [100 * model["share_of_peak"]["tinyqa torch fp32"] for model in reader]
    shown = row("share of the processor's fp32 peak that torch reaches")
    assert shown[::3] == pytest.approx(shares, abs=0.6), "each beside the two numbers of its model's size"
    run = results("corpus")["sizes"][-1]["runs"][0]
    documents, passes = run["report"]["documents"], run["passes"]
    assert row("BM25: reading a corpus")[0] == pytest.approx(
        documents / passes["reading"]["seconds"], rel=0.02
    )
    assert row("BM25: indexing it, two actors")[0] == pytest.approx(
        documents / passes["indexing"]["seconds"], rel=0.02
    )
    rewritten = results("rewriting")["copies_per_cpu_s"]["median"]
    assert row("rewriting copies, candidates known")[0] == pytest.approx(rewritten, rel=0.01)


def test_times_of_a_step_beside_computing_are_those_measured() -> None:
    measured = results("training_step")
    reading = [measured["reading"][f"batch of {size}"]["median_on_core_ms"] for size in (32, 96)]
    shown = row("order and collation of a step, batches of 32 / 96 of 3 million windows")
    assert shown == pytest.approx(reading, abs=0.006)
    share = measured["step"]["most_percent_beside_computing"]
    (first, *_) = row("share of a step that is neither forward, backward, exchange nor optimiser")
    assert first == pytest.approx(share, abs=0.06)


def test_every_section_says_whether_it_is_measured_or_estimated() -> None:
    sections = re.split(r"(?m)^## ", PAGE)[1:]
    assert [section.splitlines()[0] for section in sections if "stimated" not in section] == ["Measured"]
