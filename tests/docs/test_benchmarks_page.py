"""The tables of docs/benchmarks.md, and of README, show the figures of benchmarks/results/."""

from __future__ import annotations

import json
import re
from typing import Any

import pages
import pytest

PAGE = pages.ROOT / "docs" / "benchmarks.md"
README = pages.ROOT / "README.md"


def results(name: str) -> Any:
    return json.loads((pages.ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cells(page: Any, start: str) -> list[list[str]]:
    """The cells of the rows whose first cell begins so."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    split = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [row for row in split if row[0].startswith(start)]


def numbers(text: str) -> list[float]:
    return [float(each.replace(",", "")) for each in re.findall(r"\d[\d,]*\.?\d*", text)]


READERS = {
    "transformers 4.57 pipeline": ("pipeline batch 1", "pipeline batch 16"),
    "Haystack `TransformersExtractiveReader`": ("haystack",),
    "optimum, OpenVINO int8": tuple(
        f"optimum-openvino, {how}" for how in ("pipeline", "batches of 8", "batches of 32")
    ),
    "optimum, ONNX Runtime int8": tuple(
        f"optimum-onnx, {how}" for how in ("pipeline", "batches of 8", "batches of 32")
    ),
    "this reader, torch fp32": ("tinyqa torch fp32",),
    "exported fp32": ("tinyqa export fp32",),
    "exported bf16": ("tinyqa export bf16",),
    "exported int8": ("tinyqa export int8",),
    "exported ONNX int8": ("tinyqa export onnx int8",),
}


@pytest.mark.parametrize(("start", "names"), READERS.items())
def test_speeds_of_reading_are_those_measured(start: str, names: tuple[str, ...]) -> None:
    small, base = results("reader")["models"]
    (row,) = (row for row in cells(PAGE, start) if len(row) == 5)
    corpus = small["pairs_per_s"]["corpus"]
    expected = [
        [small["pairs_per_s"]["pairs"][name]["median"] for name in names],
        [small["forced_f1"][name] for name in names],
        [base["pairs_per_s"]["pairs"][name]["median"] for name in names],
        [corpus[name]["median"] for name in names if name in corpus],
    ]
    for cell, figures in zip(row[1:], expected, strict=True):
        assert numbers(cell) == pytest.approx(figures, abs=0.06)


def test_speed_of_int8_since_that_run_is_what_was_measured() -> None:
    (model,) = results("reader_384")["models"]
    pairs = model["pairs_per_s"]["pairs"]
    ours = pairs["tinyqa export int8"]
    theirs = [pairs[name] for name in pairs if name.startswith("optimum")]
    best = max(theirs, key=lambda each: each["median"])
    of_best_rounds = ours["max"] / max(each["max"] for each in theirs)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    corpus = model["pairs_per_s"]["corpus"]["tinyqa export int8"]["median"]
    expected = (
        f"int8 reads {ours['median']:.1f} pairs per second, of 30 paragraphs a question {corpus:.1f}, and "
        f"the best of optimum's {best['median']:.1f}: {ours['median'] / best['median']:.1f} times as many, "
        f"and {of_best_rounds:.2f} times by the best round of each. "
        f"That is {model['share_of_peak']['tinyqa export int8']:.0%} of the int8 peak."
    ).replace("%", " %")
    assert expected in text


def test_loss_of_int8_is_what_was_measured() -> None:
    openvino, onnx = results("int8_f1"), results("int8_f1_onnx")
    lost = [each["lost"]["forced_f1"] for each in (openvino, onnx)]
    lost += [each["with_7_bits"]["lost"]["forced_f1"] for each in (openvino, onnx)]
    shown = re.search(
        r"loses ([\d.]+) points of forced F1 on 1,298 questions with OpenVINO and\s"
        r"([\d.]+) with ONNX Runtime; with weights of 7 bits, ([\d.]+) and ([\d.]+)",
        PAGE.read_text(encoding="utf-8"),
    )
    assert shown is not None
    assert [float(each) for each in shown.groups()] == pytest.approx(lost, abs=0.06)


def test_what_each_part_of_distillation_adds_is_what_was_measured() -> None:
    measured = results("distillation")
    names = {
        "labels alone": "a",
        "labels alone, as many": "a+",
        "the teacher's predictions": "b",
        "its layers": "c",
        "the same on augmented": "d",
        "relations": "e",
    }
    for start, arm in names.items():
        row = cells(PAGE, start)[0]
        for cell, figure in zip(row[1:], ("forced_f1", "f1"), strict=True):
            found = measured["arms"][arm][figure]
            assert numbers(cell) == pytest.approx([found["mean"], found["std"]], abs=0.06), start
    assert numbers(cells(PAGE, "teacher")[0][1]) == pytest.approx(
        [measured["teacher"]["forced_f1"]["mean"]], abs=0.06
    )


def test_student_of_the_published_size_is_what_was_measured() -> None:
    measured = results("distillation_768")
    arms = {
        "labels alone": measured["arms"]["a+"],
        "layers on copies": measured["arms"]["d-"],
        "its teacher, 12": measured["teacher"],
    }
    for start, figures in arms.items():
        (row,) = (row for row in cells(PAGE, start) if len(row) == 4)
        shown = [numbers(cell)[0] for cell in row[1:]]
        assert shown == pytest.approx(
            [figures[name]["mean"] for name in ("forced_f1", "f1", "best_f1")], abs=0.06
        )


def test_speeds_of_answering_are_those_measured() -> None:
    stages = results("answer")["speed"]["stages"]
    for form in ("torch fp32", "export int8"):
        row = cells(PAGE, f"`tinyqa answer`, {form.replace('export', 'exported')}")[0]
        stage = stages[f"stage, {form}"]
        expected = [stage["pairs_per_s"]["median"], stage["pairs_per_s_without_start_up"]["median"]]
        assert [numbers(cell)[0] for cell in row[1:]] == pytest.approx(expected, abs=0.06)


def test_seconds_recall_and_memory_at_millions_of_passages_are_those_measured() -> None:
    sizes = [size["runs"] for size in results("corpus")["sizes"]]
    passes = [runs[0]["passes"] for runs in sizes]

    def row(start: str) -> list[float]:
        return [number for cell in cells(PAGE, start)[0][1:] for number in numbers(cell)]

    assert row("passages of the corpus") == [runs[0]["report"]["passages"] for runs in sizes]
    taken = [size[name]["seconds"] for size in passes for name in ("reading", "indexing")]
    assert row("reading / indexing") == pytest.approx(taken, rel=0.03)
    assert row("choosing ten") == pytest.approx([size["selecting"]["seconds"] for size in passes], rel=0.03)
    found = [100 * run["report"]["own_document_selected"] for runs in sizes for run in runs]
    assert row("the own paragraph") == pytest.approx(found, abs=0.51)
    memory = [
        most / 1000
        for size in passes
        for most in (
            max(size["indexing"]["actors_with_mapped_mb"]),
            max(each["driver_with_mapped_mb"] for each in size.values()),
        )
    ]
    assert row("memory of an indexing actor") == pytest.approx(memory, abs=0.006)


def test_speeds_of_serving_are_those_measured() -> None:
    served = results("serve")
    row = cells(PAGE, "requests/s of one passage")[0]
    expected = [
        served["plain server"]["requests_per_s"],
        *(served[form]["saturation"]["requests_per_s"] for form in ("torch fp32", "export int8")),
    ]
    assert [numbers(cell)[0] for cell in row[1:]] == pytest.approx(expected, abs=0.06)


def readme_figures() -> dict[str, tuple[float, float]]:
    """Ours and the best peer's, by the first words of a row of README's table."""
    reading = results("reader")["models"][0]["pairs_per_s"]["pairs"]
    served, mini = results("serve"), results("mini")["figures"]["student"]
    augment = results("augment")["copies_per_s"]
    train = results("train")["peer"]["samples_per_s"]
    corpus = results("answer")["speed"]["pairs_per_s"]
    return {
        "pairs of a question and a paragraph": (
            reading["tinyqa export int8"]["median"],
            max(reading[name]["median"] for name in reading if not name.startswith("tinyqa")),
        ),
        "the same over a corpus": (
            corpus["stage, export int8"]["median"],
            corpus["pipeline, batch 1"]["median"],
        ),
        "requests per second": (
            served["export int8"]["saturation"]["requests_per_s"],
            served["plain server"]["requests_per_s"],
        ),
        "windows distilled": (train["tinyqa"]["whole"], train["farm"]["whole"]),
        "augmented copies": (augment["tinyqa"]["median"], augment["farm"]["median"]),
        "the package's model": (mini["forced_f1"], mini["f1"]),
    }


@pytest.mark.parametrize("start", readme_figures())
def test_figures_of_readme_are_those_measured(start: str) -> None:
    (row,) = cells(README, start)
    assert [numbers(cell)[0] for cell in row[1:3]] == pytest.approx(readme_figures()[start], abs=0.06)
