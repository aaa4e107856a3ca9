r"""How many texts that a model is measured on repeat texts that it learned from, and its F1 without them.

    python benchmarks/overlap.py --learned train.json more.json --passages passages.jsonl \
        --measured dev.json nq_open_oracle.json --output overlap.json

A text repeats others if more than a fifth of its runs of eight words stand in them, as for ``tinyqa gather
--apart-from``.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from machine import machine, show

from tinyqa_ray.core import bundled, storage
from tinyqa_ray.datasets import squad
from tinyqa_ray.evaluate import measure
from tinyqa_ray.gather.overlap import Overlap
from tinyqa_ray.reader import Reader

MAX_ANSWER_TOKENS = 30


def main() -> None:
    """Compare, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--learned", nargs="+", required=True, help="SQuAD JSON that the model learned from")
    parser.add_argument("--passages", help="JSON lines with a text each, which it learned from, too")
    parser.add_argument("--measured", nargs="+", required=True, help="SQuAD JSON that it is measured on")
    parser.add_argument("--model", default=bundled.MODEL, help="the model (the package's)")
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    learned = {named(data): texts(data) for data in arguments.learned}
    if arguments.passages:
        lines = storage.read_bytes(arguments.passages).decode().splitlines()
        learned[named(arguments.passages)] = [json.loads(line)["text"] for line in lines]
    known = Overlap(text for each in learned.values() for text in each)
    reader = Reader.from_pretrained(arguments.model, precision="fp32")
    made = {
        "model": Path(arguments.model).name,
        "learned_texts": {name: len(each) for name, each in learned.items()},
        "measured": {
            Path(data).stem: {**repeated(data, learned, known), **figures(data, known, reader)}
            for data in arguments.measured
        },
    }
    if arguments.output:
        text = json.dumps({"benchmark": "overlap", **made, "machine": machine()}, indent=2)
        Path(arguments.output).write_text(text + "\n")
    show("overlap", made)


def named(data: str) -> str:
    """A file's name with its folder's, as several data sets have a train.json."""
    return "/".join(Path(data).parts[-2:])


def texts(data: str) -> list[str]:
    """The paragraphs of SQuAD data."""
    return [each.context for each in squad.read_squad(data)]


def repeated(data: str, learned: Mapping[str, Sequence[str]], known: Overlap) -> dict[str, Any]:
    """How many paragraphs repeat what was learned from, and how many learned texts repeat a paragraph."""
    paragraphs = texts(data)
    measured = Overlap(paragraphs)
    return {
        "paragraphs": len(paragraphs),
        "that_repeat_learned_text": sum(each in known for each in paragraphs),
        "learned_texts_that_repeat_it": {
            name: sum(text in measured for text in each) for name, each in learned.items()
        },
    }


def figures(data: str, known: Overlap, reader: Reader) -> dict[str, Any]:
    """F1 of the model on all questions, and on those whose paragraph repeats nothing, in percent."""
    asked = measure.questions_of(data)
    readings, _ = measure.read(reader, asked, MAX_ANSWER_TOKENS)
    apart = [place for place, each in enumerate(asked) if each.context not in known]

    def scored(places: Sequence[int]) -> dict[str, float | int]:
        found = measure.Scored.of([asked[place] for place in places], [readings[place] for place in places])
        summary = found.summary(reader.settings.no_answer_threshold)
        return {
            "questions": len(places),
            "f1": round(summary.f1, 2),
            "forced_f1": round(summary.forced_f1 or 0.0, 2),
        }

    return {"all": scored(range(len(asked))), "apart": scored(apart)}


if __name__ == "__main__":
    main()
