"""Pairs per second and F1 of a cascade against its larger model alone, each question asked of ten passages.

python benchmarks/cascade.py --first FOLDER --data dev.json --passages passages.jsonl

The questions of half of the articles decide what the first pass may leave out, and those of the others are
measured, where they have an answer: of the passages and the paragraphs of all articles, BM25 finds the
candidates of each. In each round, the same pairs are read by the larger model alone and by the cascade, in
turns and in one process.
"""

import argparse
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, show

from tinyqa_ray.core import bundled, storage
from tinyqa_ray.datasets import squad
from tinyqa_ray.evaluate import first_pass, measure
from tinyqa_ray.evaluate.first_pass import Pair
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.cascade import FirstReader, Float, kept
from tinyqa_ray.reader.reader import first_reader
from tinyqa_ray.reader.spans import Reading


def main() -> None:
    """Fit and measure each first model, then print and keep the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    articles = squad.read_squad(arguments.data)
    titles = sorted({each.title for each in articles})
    fitted_on, measured_on = titles[::2], titles[1::2]
    if arguments.fit_data:
        others = squad.read_squad(arguments.fit_data)
        fitted_on, measured_on = sorted({each.title for each in others}), titles
        assert not set(fitted_on) & set(measured_on), "nothing is measured on what it was fitted on"
        articles = [*articles, *others]
    lines = Path(arguments.passages).read_text(encoding="utf-8").splitlines() if arguments.passages else []
    texts = [each.context for each in articles] + [json.loads(line)["text"] for line in lines]
    parts = []
    for wanted, most in ((fitted_on, arguments.fit_questions), (measured_on, arguments.questions)):
        asked = measure.labelled([each for each in articles if each.title in wanted], arguments.data)
        chosen = measure.spread([each for each in asked if each.question.answers], most)
        parts.append((chosen, first_pass.pairs_of(chosen, texts, arguments.candidates)))
    large = Reader.from_pretrained(arguments.model)
    figures: dict[str, Any] = {
        "model": arguments.model,
        "engine": large.engine.name,
        "threads": arguments.threads,
        "texts": len(set(texts)),
        "candidates": arguments.candidates,
        "questions": len(parts[1][0]),
        "pairs": len(parts[1][1]),
        "fitted_on_questions": len(parts[0][0]),
        "loss_percent": arguments.loss,
    }
    (fit_chosen, fit_pairs), (chosen, pairs) = parts
    fit_large = _read(large, fit_pairs)
    firsts = []
    for name in arguments.first:
        first = first_reader(name)
        threshold = large.settings.no_answer_threshold
        fitted = first_pass.curve(
            first_pass.judged(
                fit_chosen, fit_pairs, _margins(first, fit_pairs), fit_large, threshold=threshold
            )
        )
        place = fitted.within(arguments.loss)
        seconds, readings, share = _in_turns(first, large, pairs, float(fitted.keep[place]), arguments.rounds)
        found = first_pass.curve(first_pass.judged(chosen, pairs, *readings, threshold=threshold))
        f1, alone = float(found.f1[found.at(float(fitted.keep[place]))]), float(found.f1[-1])
        firsts.append(
            {
                "first": Path(name).name,
                "engine": first.engine.name if isinstance(first, Reader) else "encoder of sentences",
                "keep": float(fitted.keep[place]),
                "share_kept": round(share, 3),
                "f1": round(f1, 2),
                "f1_alone": round(alone, 2),
                "f1_ratio": round(f1 / alone, 4),
                "pairs_per_s_ratio": round(seconds["alone"] / (seconds["first"] + seconds["kept"]), 2),
                "first_pass_share_of_alone": round(seconds["first"] / seconds["alone"], 3),
                "most_ratio_at_99_percent_f1_here": _best_here(found, seconds),
            }
        )
    figures["cascades"] = firsts
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "cascade", **figures, "machine": machine()})
    show("cascade", figures)


def _in_turns(
    first: FirstReader, large: Reader, pairs: Sequence[Pair], keep: float, rounds: int
) -> tuple[dict[str, float], tuple[Float, list[Reading]], float]:
    """Seconds of the larger model alone, the first pass, and what it keeps; what both found; share kept."""
    seconds = dict.fromkeys(("alone", "first", "kept"), 0.0)
    margins: list[Float] = []
    readings: list[Reading] = []
    stay = 0
    bounds = np.linspace(0, pairs[-1].number + 1, rounds + 1)
    for low, high in itertools.pairwise(bounds):
        some = [pair for pair in pairs if low <= pair.number < high]
        began = time.perf_counter()
        readings.extend(_read(large, some))
        seconds["alone"] += time.perf_counter() - began
        began = time.perf_counter()
        each = _margins(first, some)
        margins.append(each)
        numbers = np.array([pair.number for pair in some])
        best = {number: each[numbers == number].max() for number in set(numbers.tolist())}
        mask = kept(each, np.array([best[number] for number in numbers.tolist()]), keep)
        seconds["first"] += time.perf_counter() - began
        began = time.perf_counter()
        _read(large, [pair for pair, stays in zip(some, mask, strict=True) if stays])
        seconds["kept"] += time.perf_counter() - began
        stay += int(mask.sum())
    return seconds, (np.concatenate(margins), readings), stay / len(pairs)


def _best_here(curve: first_pass.Curve, seconds: dict[str, float]) -> float:
    """The ratio that a fit on the measured questions themselves would reach."""
    share = float(curve.share[curve.within(1.0)])
    return round(1 / (seconds["first"] / seconds["alone"] + share), 2)


def _margins(first: FirstReader, pairs: Sequence[Pair]) -> Float:
    return first.margins([(pair.question, pair.text) for pair in pairs])


def _read(reader: Reader, pairs: Sequence[Pair]) -> list[Reading]:
    return reader.read([(pair.question, pair.text) for pair in pairs])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bundled.MODEL, help="the larger model")
    parser.add_argument("--first", action="append", required=True, help="a smaller model; may be repeated")
    parser.add_argument("--data", default=bundled.asset("squad2_dev.json"), help="SQuAD data with answers")
    parser.add_argument("--fit-data", help="SQuAD data to fit on (every other article of --data)")
    parser.add_argument("--passages", help="JSON lines with a text each, among which answers are sought too")
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--questions", type=int, default=150)
    parser.add_argument("--fit-questions", type=int, default=150)
    parser.add_argument(
        "--loss", type=float, default=1.0, help="percent of F1 that may be lost where it is fitted"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
