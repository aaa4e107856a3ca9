"""Write figures of benchmarks/results/ (mini, mini_trials, overlap) into MODEL_CARD.md.

    python benchmarks/mini_card.py

What stands between ``<!-- figures: NAME -->`` and ``<!-- end -->`` is made anew; the rest of the card is
written by hand.
"""

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from machine import no_options

ROOT = Path(__file__).parents[1]
CARD = ROOT / "MODEL_CARD.md"
RESULTS = ROOT / "benchmarks" / "results"
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
_TEXTS = {
    "dev": "the articles of SQuAD 2.0",
    "nq_open_oracle": "Natural Questions",
    "quoref_contrast": "Quoref",
}
_TRIALS = ("f1", "best_f1", "forced_f1", "calibration_error")


def main() -> None:
    """Write the card."""
    no_options(__doc__)
    if "elsewhere" not in results("mini"):
        sys.exit("mini.json is of an earlier benchmarks/mini.py; run that first")
    CARD.write_text(filled(CARD.read_text(encoding="utf-8"), tables()), encoding="utf-8")


def results(name: str) -> Any:
    """The figures of a script."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def tables() -> dict[str, str]:
    """What stands in each place of the card, by its name."""
    made = results("mini")
    return {
        **tables_of(made),
        "beside": _beside(made),
        "aims": _aims(made),
        "trials": _trials(results("mini_trials")["students"]),
        "overlap": _overlap(results("overlap")["measured"]),
    }


def tables_of(made: dict[str, Any]) -> dict[str, str]:
    """The places that are filled from a run of benchmarks/mini.py alone."""
    return {
        "dev": _figures(made["figures"], made["questions_per_s"]),
        "kept": _kept(made),
        "scale": _scale(made["figures"]["student"]),
        "failures": _failures(made["failures"]),
        **{name: _figures(figures, None) for name, figures in made["elsewhere"].items()},
    }


def filled(card: str, tables: dict[str, str]) -> str:
    """The card with these tables; every table must have its place in it."""
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


def _beside(made: dict[str, Any]) -> str:
    """The model beside its first edition, and its int8 form beside it."""
    dev = made["figures"]
    queries, quoref = (made["elsewhere"][name] for name in ("nq_open_oracle", "quoref_contrast"))

    def gained(
        figures: dict[str, Any], figure: str, name: str = "student", of: str = "edition before"
    ) -> str:
        gain = figures[name][figure] - figures[of][figure]
        return f"{abs(gain):.1f} points {'higher' if gain > 0 else 'lower'}"

    left = [quoref[name]["answerable_left_unanswered"] for name in ("student", "edition before")]
    int8 = [gained(dev, figure, "student, int8", "student") for figure in ("forced_f1", "f1")]
    return (
        f"Its F1 is {gained(dev, 'f1')} than the first edition's on the articles of SQuAD 2.0, and "
        f"{gained(queries, 'f1')} on search queries. On Quoref it marks better spans (its forced F1 is "
        f"{gained(quoref, 'forced_f1')}), but leaves {left[0]:.0f} % of the questions unanswered where the "
        f"first edition left {left[1]:.0f} %, so its F1 there is {gained(quoref, 'f1')}. In int8, forced F1 "
        f"on the articles of SQuAD 2.0 is {int8[0]}, and F1 {int8[1]}."
    )


def _aims(made: dict[str, Any]) -> str:
    """What this edition was meant to reach and does not."""
    dev, elsewhere, speed = made["figures"], made["elsewhere"], made["speed_of_student_to_teacher"]
    queries, quoref = elsewhere["nq_open_oracle"], elsewhere["quoref_contrast"]
    unanswered = "answerable_left_unanswered"
    gain = quoref["student"]["f1"] - quoref["edition before"]["f1"]
    lost = dev["student"]["forced_f1"] - dev["student, int8"]["forced_f1"]
    rows = [
        ["F1 beside its teacher's", "at least 95 %", f"{made['kept']['f1']} %"],
        [
            "speed beside its teacher's",
            "at least 8 times",
            f"{speed:.1f} times",
        ],
        ["best F1", "at least 66", f"{dev['student']['best_f1']:.1f}"],
        ["search queries left unanswered", "at most 25 %", f"{queries['student'][unanswered]:.0f} %"],
        ["Quoref's questions left unanswered", "at most 25 %", f"{quoref['student'][unanswered]:.0f} %"],
        ["F1 on Quoref beside the first edition's", "5 points more", _more_or_less(gain)],
        ["forced F1 of int8 beside fp32's", "at most 0.3 points less", _more_or_less(-lost)],
    ]
    return _table(["", "aim", "reached"], rows)


def _more_or_less(points: float) -> str:
    return f"{abs(points):.1f} points {'more' if points > 0 else 'less'}"


def _trials(students: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            str(number),
            each["student"],
            *(f"{each[name]:.1f}" if name in each else "–" for name in _TRIALS),
        ]
        for number, each in enumerate(students, 1)
    ]
    return _table(["", "student", *(_COLUMNS[name] for name in _TRIALS)], rows)


def _overlap(measured: dict[str, Any]) -> str:
    rows = [
        [
            _TEXTS[name],
            f"{found['that_repeat_learned_text']} of {found['paragraphs']:,}",
            f"{found['all']['questions'] - found['apart']['questions']} of {found['all']['questions']:,}",
            *(f"{found[part][figure]:.1f}" for part in ("all", "apart") for figure in ("f1", "forced_f1")),
        ]
        for name, found in measured.items()
    ]
    head = ["", "texts that repeat", "questions asked of these", "F1 of all", "forced F1 of all"]
    return _table([*head, "F1 of the others", "forced F1 of the others"], rows)


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
