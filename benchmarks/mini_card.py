"""Write the figures of benchmarks/results/mini.json into MODEL_CARD.md.

    python benchmarks/mini_card.py

What stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is made anew; the rest of the card is
written by hand.
"""

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from machine import no_options

ROOT = Path(__file__).parents[1]
CARD = ROOT / "MODEL_CARD.md"
RESULTS = ROOT / "benchmarks" / "results" / "mini.json"
_ROWS = {
    "student": "**tinyqa-mini**",
    "student, int8": "in int8 (`tinyqa-mini-int8`)",
    "teacher": "its teacher",
    "edition before": "tinyqa-mini, first edition",
}
_COLUMNS = {
    "exact": "EM",
    "f1": "F1",
    "has_ans_f1": "HasAns F1",
    "no_ans_f1": "NoAns",
    "best_f1": "best F1",
    "forced_f1": "forced F1",
    "answerable_left_unanswered": "answerable, left unanswered",
    "calibration_error": "calibration error",
}
_KINDS = {
    "an answer where there is none": "answers a question that the text does not answer",
    "no answer where there is one": "says that there is no answer",
    "another span": "marks another span",
    "a span that shares words with the right one": "marks a span that shares words with the right one",
}


def main() -> None:
    """Write the card."""
    no_options(__doc__)
    made = json.loads(RESULTS.read_text(encoding="utf-8"))
    if "elsewhere" not in made:
        sys.exit(f"{RESULTS.name} is of an earlier benchmarks/mini.py; run that first")
    CARD.write_text(filled(CARD.read_text(encoding="utf-8"), made), encoding="utf-8")


def filled(card: str, made: dict[str, Any]) -> str:
    """The card with the tables of these figures; every table must have its place in it."""
    tables = {
        "dev": _figures(made["figures"], made["questions_per_s"]),
        "kept": _kept(made),
        "scale": _scale(made["figures"]["student"]),
        "failures": _failures(made["failures"]),
        **{name: _figures(figures, None) for name, figures in made["elsewhere"].items()},
    }
    for name, table in tables.items():
        place = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        card, count = place.subn(partial(_with_table, table), card)
        assert count == 1, f"the card has {count} places for {name}"
    return card


def _figures(figures: dict[str, Any], speeds: dict[str, float] | None) -> str:
    shown = [name for name in _COLUMNS if name in figures["student"]]
    head = ["", *(_COLUMNS[name] for name in shown), *(["questions/s"] if speeds else [])]
    rows = [
        [
            label,
            *(f"{figures[name][column]:.1f}" for column in shown),
            *([str(speeds[name])] if speeds else []),
        ]
        for name, label in _ROWS.items()
        if name in figures
    ]
    return _table(head, rows)


def _kept(made: dict[str, Any]) -> str:
    kept = made["kept"]
    return (
        f"The student keeps {kept['forced_f1']} % of its teacher's forced F1, {kept['f1']} % of its F1 and "
        f"{kept['best_f1']} % of its best F1, at {made['speed_of_student_to_teacher']} times its speed; its "
        f"int8 form runs at {made['speed_of_int8_student_to_teacher']} times the teacher's. A model that "
        f"always abstains scores {made['figures']['student']['always_abstain']:.1f}."
    )


def _with_table(table: str, found: re.Match[str]) -> str:
    return f"{found[1]}\n{table}\n\n{found[2]}"


def _scale(student: dict[str, float]) -> str:
    shift, temperature = student["score_shift"], student["temperature"]
    return (
        f"A score is `sigmoid((span - null - {shift:.2f}) / {temperature:.2f})`; the no-answer threshold is "
        f"{student['no_answer_threshold']:.4g}. On the articles of the first table the mean error of the "
        f"scores is {student['calibration_error']:.1f} %."
    )


def _failures(kinds: dict[str, Any]) -> str:
    rows = []
    for kind, label in _KINDS.items():
        found = kinds.get(kind)
        if found is None:
            continue
        example = found["surest"][0]
        answer = "–" if kind.startswith("no ") else example["predicted"]
        rows.append(
            [label, str(found["questions"]), example["question"], answer or "–", example["gold"] or "–"]
        )
    return _table(["the model", "questions", "example", "its answer", "right answer"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(each.replace("|", "\\|") for each in line) + " |" for line in lines)


if __name__ == "__main__":
    main()
