"""How far the scores of later answers, and of answers with several places, are from the share of right ones.

python benchmarks/evidence.py --choose held-out.json other.json --data dev.json

Ranks: each question is asked of its own paragraph, and the calibration error of its first, second, … answer
is measured by both definitions: held against no answer alone, and ``reader.ranks.chances``. Evidence: each
question is asked of the paragraphs that BM25 finds for it among those of its data, the places that the model
holds for an answer are put together by each rule, and the calibration error and the Brier score of all
answers are measured. The rule of the package was chosen on the data of ``--choose``; that of ``--data`` only
measures.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine, show

from tinyqa_ray.core import bundled
from tinyqa_ray.core.contents import identity
from tinyqa_ray.evaluate import first_pass, measure, ranks, squad_metrics
from tinyqa_ray.evaluate.calibration import calibration_error
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.answers import held, least_margin, logit
from tinyqa_ray.reader.evidence import shares
from tinyqa_ray.reader.ranks import same_answer
from tinyqa_ray.reader.spans import sigmoid

SPANS = 20
"""Most places of a text."""
Places = list[list[float]]
"""For each different answer, the scores of its places, each against no answer alone."""


def alone(groups: Places) -> list[float]:
    """The best place against no answer: what ``Answer.score`` was before answers were held against others."""
    return [max(group) for group in groups]


def in_turn(groups: Places, together: Callable[[Sequence[float]], float]) -> list[float]:
    """An answer is right by its places if no better answer is."""
    scores = [together(group) for group in groups]
    made, left = [0.0] * len(scores), 1.0
    for place in sorted(range(len(scores)), key=lambda each: -scores[each]):
        made[place] = left * scores[place]
        left *= 1 - scores[place]
    return made


def share(groups: Places, power: float) -> list[float]:
    """The share of an answer's odds in those of all answers and of no answer, as ``shares``.

    The odds of its places are added with ``power`` 1, only the best counts with infinity.
    """
    odds = [[score / max(1 - score, 1e-16) for score in group] for group in groups]
    together = [
        max(each) if math.isinf(power) else sum(odd**power for odd in each) ** (1 / power) for each in odds
    ]
    return [each / (1 + sum(together)) for each in together]


RULES: dict[str, Callable[[Places], list[float]]] = {
    "best place, alone": alone,
    "best place, in turn": lambda groups: in_turn(groups, max),
    "any place, in turn": lambda groups: in_turn(
        groups, lambda group: 1 - math.prod(1 - each for each in group)
    ),
    "share of odds, best place": lambda groups: share(groups, math.inf),
    "share of odds, root of squares": lambda groups: share(groups, 2),
    "share of odds, added": lambda groups: share(groups, 1),
    "the package's": shares,
}


def main() -> None:
    """Measure every rule on every file, and print and keep the figures."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    reader = Reader.from_pretrained(arguments.model, precision=arguments.precision)
    files = {**dict.fromkeys(arguments.choose, "chooses"), arguments.data: "measures"}
    evidence, chosen = [], []
    for file, role in files.items():
        figures, found = _evidence(reader, file, arguments)
        evidence.append({"data": Path(file).name, "content": identity(file), "role": role, **figures})
        if role == "chooses":
            chosen += found
    figures = {
        "model": arguments.model,
        "engine": reader.engine.name,
        "threads": arguments.threads,
        "ranks": _ranks(reader, arguments),
        "evidence": [*evidence, {"data": "all that choose", "questions": len(chosen), **_by_rule(chosen)}],
    }
    show("evidence", figures)
    if arguments.output:
        text = json.dumps({**figures, "machine": machine()}, indent=2, ensure_ascii=False)
        Path(arguments.output).write_text(f"{text}\n", encoding="utf-8")


Judged = tuple[Places, list[float]]
"""The places of each different answer to a question, and how right it is."""


def _evidence(
    reader: Reader, file: str, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[Judged]]:
    asked = measure.questions_of(file)
    chosen = measure.spread(asked, arguments.questions)
    accepted = measure.gold(chosen)
    pairs = first_pass.pairs_of(chosen, [each.context for each in asked], arguments.candidates)
    settings = reader.settings
    threshold = settings.no_answer_threshold
    read = reader.read(
        [(pair.question, pair.text) for pair in pairs],
        top_k=SPANS,
        least_margin=least_margin("all", threshold),
    )
    groups: list[dict[str, list[tuple[float, float]]]] = [{} for _ in chosen]
    for pair, reading in zip(pairs, read, strict=True):
        golds = accepted[chosen[pair.number].question.id]
        for span in reading.spans:
            if held(reading, span, threshold):
                text = pair.text[span.start : span.end]
                right = max((squad_metrics.f1(own, text) for own in golds), default=0.0)
                score = sigmoid(logit(reading, span, settings))
                groups[pair.number].setdefault(same_answer(text), []).append((score, right))
    found = [
        ([[score for score, _ in each] for each in own.values()], [each[0][1] for each in own.values()])
        for own in groups
        if own
    ]
    return {"questions": len(chosen), "pairs": len(pairs), **_by_rule(found)}, found


def _by_rule(found: Sequence[Judged]) -> dict[str, Any]:
    right = np.array([each for _, own in found for each in own])
    several = np.array([len(group) > 1 for groups, _ in found for group in groups])
    rules = {}
    for name, rule in RULES.items():
        scores = np.array([score for groups, _ in found for score in rule(groups)])
        first = np.array([np.argmax(rule(groups)) for groups, _ in found])
        best = np.array([rule(groups)[at] for (groups, _), at in zip(found, first, strict=True)])
        best_right = np.array([own[at] for (_, own), at in zip(found, first, strict=True)])
        rules[name] = {
            "all": _figures(scores, right),
            "first": _figures(best, best_right),
            "several_places": _figures(scores[several], right[several]),
        }
    return {
        "answered": len(found),
        "answers": len(right),
        "with_several_places": int(several.sum()),
        "rules": rules,
    }


def _figures(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    if not len(scores):
        return {}
    return {
        "mean_score": round(100 * float(scores.mean()), 1),
        "right": round(100 * float(right.mean()), 1),
        "calibration_error": round(100 * calibration_error(scores, right), 1),
        "brier": round(float(((scores - right) ** 2).mean()), 4),
    }


def _ranks(reader: Reader, arguments: argparse.Namespace) -> dict[str, Any]:
    """Calibration errors by rank, in percent, of questions asked of their own paragraph."""
    asked = measure.spread(measure.questions_of(arguments.data), arguments.rank_questions)
    readings, _ = measure.read(reader, asked, 30, top_k=ranks.RANKS)
    judged = ranks.judged(asked, readings, reader.settings)
    before = [
        calibration_error(
            np.array([each.scores[rank] for each in judged if len(each.scores) > rank]),
            np.array([each.right[rank] for each in judged if len(each.right) > rank]),
        )
        for rank in range(ranks.RANKS)
    ]
    return {
        "data": Path(arguments.data).name,
        "questions": len(asked),
        "against_no_answer_alone": [round(100 * each, 1) for each in before],
        "chances": [round(each, 1) for each in ranks.errors(judged, reader.settings)],
        "right": [
            round(100 * float(np.mean([each.right[rank] for each in judged if len(each.right) > rank])), 1)
            for rank in range(ranks.RANKS)
        ],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=bundled.MODEL)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--choose", nargs="+", default=[bundled.asset("squad2_calibration.json")])
    parser.add_argument("--data", default=bundled.asset("squad2_dev.json"))
    parser.add_argument("--questions", type=int, default=100, help="of each file, for evidence")
    parser.add_argument("--rank-questions", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=5, help="texts of a question")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output")
    return parser.parse_args()


if __name__ == "__main__":
    main()
