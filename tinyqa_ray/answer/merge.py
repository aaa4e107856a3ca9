"""Answers of all units → the best answers to each question in the whole corpus."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pyarrow as pa

from tinyqa_ray.answer.answerer import as_answer, best_first
from tinyqa_ray.answer.notes import Example, Notes
from tinyqa_ray.answer.rows import Row, chosen, counted, rows_of, write_jsonl
from tinyqa_ray.answer.where import Stand, placed
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.cluster import quiet_models
from tinyqa_ray.corpus import tables
from tinyqa_ray.corpus.files import Texts
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader.answers import Answer, ranked
from tinyqa_ray.reader.reader import too_long_questions

NOWHERE = Answer(None, 1.0, 0, 0, 1.0)
"""The answer to a question for which no text of the corpus was read."""
_HELD = 64
"""How many answers beyond ``top_k`` a question may collect before only the best are kept."""


class Merger:
    """Ranks the answers to a range of questions; each actor makes one."""

    def __init__(
        self,
        config: AnswerConfig,
        found: Sequence[str],
        threshold: float,
        texts: Texts | None,
        output: str,
        notes: str,
    ) -> None:
        """Load the tokenizer, which finds the questions that are too long.

        Args:
            config: configuration of the stage.
            found: files of schema ``FOUND``, each sorted by question.
            threshold: a question has no answer if its ``na_prob`` is above this value in every document.
            texts: the texts of documents that are files, which say where answers stand.
            output: folder for JSON lines.
            notes: folder for notes, from which the page is made.
        """
        quiet_models()
        self.config, self.found, self.threshold, self.texts = config, found, threshold, texts
        self.output, self.notes = output, notes
        self.windower = Windower(pretrained.load_tokenizer(config.model), config.window, cut_questions=False)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Turn rows of ``tables.QUESTIONS`` into rows of ``ANSWERS``, in the same order."""
        questions = rows.to_pylist()
        first, last = questions[0]["question_row"], questions[-1]["question_row"]
        best = self._best(first, last)
        asked = self.windower.questions(each["question"] for each in questions if each["error"] is None)
        too_long = too_long_questions(self.windower, asked)
        made: list[Row] = []
        stand: list[Stand | None] = []
        counts: dict[str, float] = {}
        examples: dict[bool, Example] = {}
        for question in questions:
            key = {"question_id": question["question_id"], "question": question["question"]}
            error = question["error"] or too_long.get(question["question"])
            if error is not None:
                made.append({**key, "rank": 0, "error": error})
                stand.append(None)
                counts["errors"] = counts.get("errors", 0) + 1
                continue
            found = best.get(question["question_row"], [])
            by_place = {(row["document_id"], row["start"], row["end"]): row for row in found}
            spans = ranked([[as_answer(row)] for row in found], self.threshold, self.config.top_k)
            kept = chosen(spans or [NOWHERE], self.config)
            counted(kept, counts)
            places = [by_place.get((each.document_id, each.start, each.end)) for each in kept]
            made += rows_of(key, kept, [place["meta"] if place else None for place in places])
            stand += [_stand(place) for place in places]
            if found:
                examples.setdefault(
                    spans[0].answer is None, Example.of(key["question"], found[0]["row"], spans[0])
                )
        counts["rows"] = len(made)
        schema = placed(made, stand, self.texts)
        name = f"{first:012d}"
        if self.config.jsonl:
            write_jsonl(storage.join(self.output, f"from-{name}.jsonl"), made, schema)
        Notes(seconds=0.0, characters=0, slowest=[], examples=list(examples.values())).write(
            storage.join(self.notes, f"from-{name}.json")
        )
        return pa.Table.from_pylist(made, schema=schema), counts

    def _best(self, first: int, last: int) -> dict[int, list[Row]]:
        """The ``top_k`` best answers to each question from row ``first`` to row ``last``."""
        best: dict[int, list[Row]] = {}
        for file in self.found:
            for row in tables.rows_between(file, "question_row", first, last).to_pylist():
                held = best.setdefault(row["question_row"], [])
                held.append(row)
                if len(held) >= self.config.top_k + _HELD:
                    held[:] = heapq.nsmallest(self.config.top_k, held, key=best_first)
        return {
            question: heapq.nsmallest(self.config.top_k, held, key=best_first)
            for question, held in best.items()
        }


def _stand(place: Row | None) -> Stand | None:
    return None if place is None else (place["row"], place["start"], place["end"])
