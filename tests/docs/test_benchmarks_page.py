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


def assert_read(row: list[str], names: tuple[str, ...], small: Any, base: Any) -> None:
    """A row: a small model's pairs/s and forced F1, a larger one's pairs/s, the small one's of corpora."""
    corpus = small["pairs_per_s"]["corpus"]
    expected = [
        [small["pairs_per_s"]["pairs"][name]["median"] for name in names],
        [small["forced_f1"][name] for name in names],
        [base["pairs_per_s"]["pairs"][name]["median"] for name in names],
        [corpus[name]["median"] for name in names if name in corpus],
    ]
    for cell, figures in zip(row[1:], expected, strict=True):
        assert numbers(cell) == pytest.approx(figures, abs=0.06)


@pytest.mark.parametrize(("start", "names"), READERS.items())
def test_speeds_of_reading_are_those_measured(start: str, names: tuple[str, ...]) -> None:
    (row,) = (row for row in cells(PAGE, start) if len(row) == 5)
    assert_read(row, names, *results("reader")["models"])


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


WITHOUT_VNNI = {
    "the pipeline, batch": READERS["transformers 4.57 pipeline"],
    "Haystack's reader": ("haystack",),
    "optimum's OpenVINO int8": READERS["optimum, OpenVINO int8"],
    "optimum's ONNX int8": READERS["optimum, ONNX Runtime int8"],
    "this one, torch fp32": ("tinyqa torch fp32",),
    "this one, OpenVINO fp32": ("tinyqa export fp32",),
    "this one, ONNX fp32": ("tinyqa export onnx fp32",),
    "this one, ONNX int8": ("tinyqa export onnx int8",),
}


@pytest.mark.parametrize(("start", "names"), WITHOUT_VNNI.items())
def test_speeds_without_vnni_are_those_measured(start: str, names: tuple[str, ...]) -> None:
    (row,) = cells(PAGE, start)
    assert_read(row, names, *results("reader_avx2")["models"])


def test_engines_without_vnni_are_as_fast_as_measured() -> None:
    found = {name: each["windows_per_s"] for name, each in results("engines_avx2")["engines"].items()}
    names = ("ONNX fp32", "OpenVINO fp32", "torch fp32", "OpenVINO int8")
    rest = ", ".join(f"{name} {found[name]}" for name in names)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    wanted = (
        f"ONNX int8 {found['ONNX int8']} ({found['ONNX int8, all fusions']} with the fusion that is left out)"
    )
    assert f"{wanted}, {rest}." in text


def test_ratios_without_vnni_are_those_measured() -> None:
    measured = results("reader_avx2")
    assert measured["machine"]["has"] == ["avx2"]
    int8, plain, fp32 = "tinyqa export onnx int8", "tinyqa torch fp32", "tinyqa export onnx fp32"

    def over(model: Any, workload: str, name: str) -> float:
        """How many times as fast int8 is as others, by the beginning of their names."""
        speeds = {each: speed["median"] for each, speed in model["pairs_per_s"][workload].items()}
        fastest: float = max(speed for each, speed in speeds.items() if each.startswith(name))
        return speeds[int8] / fastest

    small, base = measured["models"]
    earlier = measured["earlier_runs_in_batches"]
    first, second, third = (over(run["models"][0], "pairs", "optimum") for run in earlier)
    on_dev = earlier[1]["models"][0]["forced_f1"]
    of_optimum = [f1 for name, f1 in on_dev.items() if name.startswith("optimum-onnx")]
    peaks = {name: [model["share_of_peak"][name] for model in (small, base)] for name in (fp32, int8)}
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for words in (
        f"{small['pairs']['pairs']} pairs of the package's own excerpt, three rounds of 6×384 and two of "
        f"6×768, F1 on {measured['f1_questions']} questions, {measured['minutes']:.0f} minutes in all",
        f"reads {over(small, 'pairs', 'optimum'):.2f} times as many pairs as the best int8 of others at "
        f"6×384 and {over(base, 'pairs', 'optimum'):.2f} times at 6×768; "
        f"{over(small, 'pairs', plain):.2f} times as many as "
        f"torch in fp32 ({over(small, 'corpus', plain):.2f} times of 30 paragraphs a question) and "
        f"{over(base, 'pairs', plain):.2f} times.",
        f"gave {first:.2f}, {second:.2f} and {third:.2f} times the best of others at 6×384",
        f"On {earlier[1]['f1_questions']} questions of dev forced F1 was {on_dev[int8]:.1f} then, where fp32 "
        f"has {on_dev[plain]:.1f} and optimum's {min(of_optimum):.1f} to {max(of_optimum):.1f}",
        "fp32 reaches {:.0%} of the fp32 peak at 6×384 and {:.0%} at 6×768, its int8 {:.0%} and "
        "{:.0%}".format(*peaks[fp32], *peaks[int8]).replace("%", " %"),
    ):
        assert words in text, words
    assert (small["rounds"], base["rounds"]) == (3, 2)
    assert "loses 0.51 F1" in measured["refused_earlier"]["tinyqa-mini, int8"]


def test_loss_of_int8_is_what_was_measured() -> None:
    openvino, onnx = results("int8_f1"), results("int8_f1_onnx")
    assert (openvino["weight_bits"], onnx["weight_bits"]) == (8, 7)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    forced = [each["lost"]["forced_f1"] for each in (openvino, openvino["with_7_bits"], onnx)]
    shown = re.search(
        r"loses ([\d.]+) points of forced F1 on 1,298 questions with OpenVINO and weights of 8 bits, "
        r"([\d.]+) with 7 \(.*?\), and ([\d.]+) with ONNX Runtime and 7 bits",
        text,
    )
    assert shown is not None
    assert [float(each) for each in shown.groups()] == pytest.approx(forced, abs=0.06)
    at_threshold = [each["lost"]["f1_at_threshold"] for each in (openvino, openvino["with_7_bits"], onnx)]
    assert at_threshold[0] == pytest.approx(0.3, abs=0.05)
    assert at_threshold[1] < 0.05
    assert f"threshold 0.3, none and {at_threshold[2]:.1f} (" in text
    batches = onnx["in_batches"]
    others = batches["calibrated_on_19_articles"]["lost"]
    assert batches["lost"]["f1_at_threshold"] < 0.05
    assert (
        f"it lost {batches['lost']['forced_f1']:.1f} and none; calibrated with 300 others, of other "
        f"articles, {others['forced_f1']:.1f} and {others['f1_at_threshold']:.1f}." in text
    )
    before = onnx["without_massive_channels_in_float"]["lost"]
    assert f"lost up to {max(each['forced_f1'] for each in before.values()):.1f} points" in text
    assert f"it lost {before['8 bits, with VNNI']['forced_f1']:.1f} then" in text


def test_loss_of_the_form_that_the_card_shows_is_what_was_measured() -> None:
    figures = results("mini")["figures"]
    lost = figures["student"]["forced_f1"] - figures["student, int8"]["forced_f1"]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"with weights of 7 bits, it loses {lost:.1f} points of forced F1 on the same questions" in text


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


def test_what_arrives_in_another_vocabulary_is_what_was_measured() -> None:
    measured = results("vocabularies")
    for row in measured["projected"]:
        (shown,) = cells(PAGE, f"`{row['teacher']}`, {row['vocabulary']}")
        keys = ("same_answer_percent", "starts_on_border_percent", "ends_on_border_percent")
        wanted = [row["forced_f1"], *(row[key] for key in keys if key in row)]
        assert [number for cell in shown[1:] for number in numbers(cell)] == pytest.approx(wanted, abs=0.06)
    for row in measured["trained"]:
        by = "labels alone" if row["taught_by"] == "labels" else f"predictions of `{row['taught_by']}`"
        (shown,) = cells(PAGE, f"{row['vocabulary']}, {by}")
        found = [numbers(cell)[0] for cell in shown[1:]]
        assert found == pytest.approx([row["forced_f1"], row["best_f1"]], abs=0.06)


def test_speeds_of_answering_are_those_measured() -> None:
    stages = results("answer")["speed"]["stages"]
    for form in ("torch fp32", "export int8"):
        row = cells(PAGE, f"`tinyqa answer`, {form.replace('export', 'exported')}")[0]
        stage = stages[f"stage, {form}"]
        expected = [stage["pairs_per_s"]["median"], stage["pairs_per_s_without_start_up"]["median"]]
        assert [numbers(cell)[0] for cell in row[1:]] == pytest.approx(expected, abs=0.06)


def test_speeds_of_answering_without_vnni_are_those_measured() -> None:
    measured = results("answer_avx2")
    assert (measured["model"], measured["machine"]["has"]) == ("tinyqa-mini", ["avx2"])
    speeds = {name: each["median"] for name, each in measured["speed"]["pairs_per_s"].items()}
    stage = measured["speed"]["stages"]["stage, export int8"]
    steady, engine = stage["pairs_per_s_without_start_up"]["median"], speeds["engine, export int8"]
    growth = measured["growth"]
    start_s = stage["seconds"] - stage["seconds_without_start_up"]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    for words in (
        f"answers {speeds['stage, export int8']:.1f} pairs per second, {steady:.1f} without "
        f"{start_s:.0f} s of start: {steady / engine:.0%} of its bare engine's {engine:.1f}.".replace(
            "%", " %"
        ),
        f"pipeline answers {speeds['pipeline, batch 1']:.1f} (of {measured['speed']['peer_pairs']} "
        f"questions), Haystack's reader {speeds['haystack']:.1f}.",
        f"takes {growth['times_as_long_without_start_up']:.1f} times as long without the start "
        f"({growth['times_as_long']:.1f} with it), and a second actor on a second core makes it "
        f"{measured['actors']['two_to_one_with_half_of_them']:.1f} times as fast.",
    ):
        assert words in text, words
    (row,) = cells(README, "the same over a corpus")
    assert [numbers(row[3])[0], numbers(row[3])[-1]] == pytest.approx(
        [speeds["stage, export int8"], speeds["pipeline, batch 1"]], abs=0.06
    )


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


def test_speeds_of_serving_without_vnni_are_those_measured() -> None:
    served = results("serve_avx2")
    assert served["machine"]["has"] == ["avx2"]
    forms = [served[form] for form in ("torch fp32", "export int8")]

    def shown(start: str) -> list[list[float]]:
        return [numbers(cell) for cell in cells(PAGE, start)[1][1:] if numbers(cell)]

    def measured(part: str, pace: str) -> list[list[float]]:
        return [[each[part][pace], 100 * each[part]["share_of_engine"]] for each in forms]

    plain, *ours = shown("requests/s of one passage")
    assert plain == pytest.approx([served["plain server"]["requests_per_s"]], abs=0.06)
    for found, part, pace in (
        (ours, "saturation", "requests_per_s"),
        (shown("passages/s, ten a request"), "saturation, 10 passages", "pairs_per_s"),
    ):
        for one, two in zip(found, measured(part, pace), strict=True):
            assert one[0] == pytest.approx(two[0], abs=0.06)
            assert one[1] == pytest.approx(two[1], abs=0.6)
    for start, part in (("p50 / p95 / p99 in ms", "latency at 50%"), ("at 80 % of it", "latency at 80%")):
        expected = [[each[part]["latency_ms"][name] for name in ("p50", "p95", "p99")] for each in forms]
        for one, two in zip(shown(start), expected, strict=True):
            assert one == pytest.approx(two, abs=0.6)


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


def test_figures_of_readme_without_vnni_are_those_measured() -> None:
    model = results("reader_avx2")["models"][0]
    speeds = {name: speed["median"] for name, speed in model["pairs_per_s"]["pairs"].items()}
    (row,) = cells(README, "pairs of a question and a paragraph")
    best = max(speed for name, speed in speeds.items() if not name.startswith("tinyqa"))
    assert numbers(row[3])[-1] == pytest.approx(best, abs=0.06)
    assert numbers(row[3])[0] == pytest.approx(speeds["tinyqa export onnx int8"], abs=0.06)
    of_pipeline = max(speed for name, speed in speeds.items() if name.startswith("pipeline"))
    assert numbers(row[4])[-1] == pytest.approx(of_pipeline, abs=0.06)
    served = results("serve_avx2")
    (row,) = cells(README, "requests per second")
    assert [numbers(row[3])[0], numbers(row[3])[-1]] == pytest.approx(
        [
            served["export int8"]["saturation"]["requests_per_s"],
            served["plain server"]["requests_per_s"],
        ],
        abs=0.06,
    )


def test_calibration_error_of_the_packages_model_is_what_was_measured() -> None:
    text = (pages.ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    shown = re.search(r"\(\*calibration error\*\) of the package's model is ([\d.]+) %", text)
    assert shown is not None
    error = results("mini")["figures"]["student"]["calibration_error"]
    assert float(shown[1]) == pytest.approx(error, abs=0.06)


def test_gain_of_a_cascade_is_what_was_measured() -> None:
    measured = results("cascade")
    page = pages.ROOT / "docs" / "cascade.md"
    for start, run in (
        ("sentences and tokens", measured),
        ("sentences alone", measured["by_sentences_alone"]),
    ):
        (cascade,), ((*_, cost, share, speed, f1),) = run["cascades"], cells(page, start)
        assert numbers(cost) == pytest.approx([100 * cascade["first_pass_share_of_alone"]], abs=0.06)
        assert numbers(share) == pytest.approx([100 * cascade["share_kept"]], abs=0.06)
        assert numbers(speed) == [cascade["pairs_per_s_ratio"]]
        assert numbers(f1) == pytest.approx([100 * cascade["f1_ratio"]], abs=0.06)
    text = " ".join((pages.ROOT / "docs" / "not-promised.md").read_text(encoding="utf-8").split())
    best = measured["cascades"][0]
    assert f"{best['pairs_per_s_ratio']:.1f} times the speed" in text
    assert f"at {100 * best['f1_ratio']:.1f} % of its F1" in text
