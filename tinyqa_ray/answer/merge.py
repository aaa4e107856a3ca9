"""Answers of all units → the best answers to each question in the whole corpus."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tinyqa_ray.answer.evidence import as_answer, kept_of, of_rows, place_columns
from tinyqa_ray.answer.found import MOST_PLACES, best_rows, wants_all
from tinyqa_ray.answer.found import as_answer as row_as_answer
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
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader.answers import Answer, ranked
from tinyqa_ray.reader.ranks import rescored
from tinyqa_ray.reader.reader import too_long_questions

NOWHERE = Answer(None, 1.0, 0, 0, 1.0)
"""The answer to a question for which no text of the corpus was read."""
_HELD = 64
"""How many answers beyond those wanted a question may collect before only the best are kept."""


class Merger:
    """Ranks the answers to a range of questions; each actor makes one."""

    def __init__(
        self,
        config: AnswerConfig,
        found: Sequence[str],
        settings: ModelSettings,
        texts: Texts | None,
        output: str,
        notes: str,
    ) -> None:
        """Load the tokenizer, which finds the questions that are too long.

        Args:
            config: configuration of the stage.
            found: files of schema ``FOUND``, each sorted by question.
            settings: threshold and scale of scores: a question has no answer if its ``na_prob`` is above the
                threshold in every document.
            texts: the texts of documents that are files, which say where answers stand.
            output: folder for JSON lines.
            notes: folder for notes, from which the page is made.
        """
        quiet_models()
        self.config, self.found, self.settings, self.texts = config, found, settings, texts
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
            columns = None
            if self.config.evidence:
                evidence = of_rows(found, self.config, self.settings)
                spans, written = list(map(as_answer, evidence)), kept_of(evidence, self.config)
                kept = list(map(as_answer, written))
                rows = [
                    [by_place[place.document_id, place.start, place.end]["row"] for place in each.places]
                    for each in written
                ]
                columns = place_columns(written, rows, self.texts)
            else:
                spans = self._ranked(found)
                kept = chosen(spans or [NOWHERE], self.config)
            counted(kept, counts)
            places = [by_place.get((each.document_id, each.start, each.end)) for each in kept]
            made += rows_of(key, kept, [place["meta"] if place else None for place in places], columns)
            stand += [_stand(place) for place in places]
            if found:
                first_place = (spans[0].document_id, spans[0].start, spans[0].end)
                example_row = by_place.get(first_place, found[0])["row"]
                shown = columns[0] if columns else ()
                examples.setdefault(
                    spans[0].answer is None, Example.of(key["question"], example_row, spans[0], shown)
                )
        counts["rows"] = len(made)
        schema = placed(made, stand, self.texts, self.config)
        name = f"{first:012d}"
        if self.config.jsonl:
            write_jsonl(storage.join(self.output, f"from-{name}.jsonl"), made, schema)
        Notes(seconds=0.0, characters=0, slowest=[], examples=list(examples.values())).write(
            storage.join(self.notes, f"from-{name}.json")
        )
        return pa.Table.from_pylist(made, schema=schema), counts

    def _ranked(self, found: Sequence[Row]) -> list[Answer]:
        threshold = self.settings.no_answer_threshold
        spans = ranked([[row_as_answer(row)] for row in found], threshold, self.config.top_k)
        if self.config.top_k == "all" and spans and spans[0].answer is None:
            spans = spans[:1]  # what follows is not held for an answer
        return rescored(spans, self.settings)

    def _best(self, first: int, last: int) -> dict[int, list[Row]]:
        """The best answers to each question from row ``first`` to row ``last``."""
        threshold = self.settings.no_answer_threshold
        most = MOST_PLACES if wants_all(self.config) else int(self.config.top_k)
        best: dict[int, list[Row]] = {}
        for file in self.found:
            for row in tables.rows_between(file, "question_row", first, last).to_pylist():
                held = best.setdefault(row["question_row"], [])
                held.append(row)
                if len(held) >= most + _HELD:
                    held[:] = best_rows(held, self.config, threshold)
        return {question: best_rows(held, self.config, threshold) for question, held in best.items()}


def _stand(place: Row | None) -> Stand | None:
    return None if place is None else (place["row"], place["start"], place["end"])
