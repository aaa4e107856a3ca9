"""What a Ray Data actor does with a unit of work: the model reads its pairs, answers become rows."""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence

import pyarrow as pa

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.engine import RunEngine
from tinyqa_ray.answer.evidence import as_answer, kept_of, of_reading, place_columns
from tinyqa_ray.answer.first_pass import FirstPass
from tinyqa_ray.answer.found import found_table, kept_of_a_document, wants_all
from tinyqa_ray.answer.notes import Example, Notes
from tinyqa_ray.answer.pairs import Pair, pairs_of
from tinyqa_ray.answer.plan import Unit, unit_of
from tinyqa_ray.answer.rows import Row, chosen, counted, rows_of, write_jsonl
from tinyqa_ray.answer.where import Stand, placed
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.answers import answers, least_margin
from tinyqa_ray.reader.ranks import rescored
from tinyqa_ray.reader.spans import Reading

_SLOWEST = 5


class Answerer:
    """Answers units; each actor makes one."""

    side_by_side = True

    def __init__(
        self,
        config: AnswerConfig,
        settings: ModelSettings,
        corpus: Corpus,
        output: str,
        notes: str,
        engine: RunEngine | None = None,
        first: FirstPass | None = None,
    ) -> None:
        """Load the model.

        Args:
            config: configuration of the stage.
            settings: threshold and scale of scores; read once, so that all actors of a run use the same.
            corpus: files of documents and questions.
            output: folder for JSON lines.
            notes: folder for notes, from which the page is made.
            engine: what the driver chose for all actors; the model's own when not given.
            first: what a smaller model found, if one has read the pairs first.
        """
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.config, self.corpus = config, corpus
        self.output, self.notes = output, notes
        self.first, self.best = first, None if first is None else first.best_margins()
        device = "cuda" if config.num_gpus else "cpu"
        chosen = engine or RunEngine(model=config.model, precision=None)
        self.reader = Reader.from_pretrained(
            chosen.model,
            settings=settings,
            window=config.window,
            device=device,
            precision=chosen.precision,
        )

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Answer a unit: rows of ``ANSWERS``, or of ``FOUND`` if a question has several documents."""
        began = time.perf_counter()
        unit = unit_of(rows)
        pairs = pairs_of(unit, self.corpus)
        counts: dict[str, float] = {}
        if self.first is not None and self.best is not None:
            pairs = self.first.kept(unit, pairs, self.best)
            counts["pairs_read"] = len(pairs)
        read = iter(
            self.reader.read_or_refuse(
                [(pair.question, pair.text) for pair in pairs if not pair.error],
                max_answer_tokens=self.config.max_answer_tokens,
                top_k=kept_of_a_document(self.config),
                least_margin=least_margin(
                    "all" if wants_all(self.config) else 1, self.reader.settings.no_answer_threshold
                ),
            )
        )
        # An error found while the input was read has priority: such a pair is not shown to the model.
        found = [(pair, pair.error or next(read)) for pair in pairs]
        good = [(pair, each) for pair, each in found if not isinstance(each, str)]
        examples: list[Example] = []
        if self.corpus.merged:
            table = found_table(good, self.config, self.reader.settings)
        else:
            table, counts, examples = self._answers(unit, found)
        Notes(
            seconds=time.perf_counter() - began,
            slowest=_slowest([pair for pair, _ in good]),
            characters=sum(len(pair.text or "") for pair, _ in good),
            examples=examples,
        ).write(storage.join(self.notes, f"unit-{unit.index:06d}.json"))
        return table, counts

    def _answers(
        self, unit: Unit, found: Sequence[tuple[Pair, Reading | str]]
    ) -> tuple[pa.Table, dict[str, float], list[Example]]:
        """Rows of ``ANSWERS``, each pair on its own, in the order of the pairs.

        Args:
            unit: whose pairs they are.
            found: each pair with its reading, or why it has none.
        """
        made: list[Row] = []
        stand: list[Stand | None] = []
        counts: dict[str, float] = {}
        examples: dict[bool, Example] = {}
        for pair, reading in found:
            key = {"question_id": pair.question_id, "question": pair.question}
            if isinstance(reading, str):
                made.append(
                    {**key, "document_id": pair.document_id, "error": reading, "rank": 0, "meta": pair.meta}
                )
                stand.append(None)
                counts["errors"] = counts.get("errors", 0) + 1
                continue
            text, settings = str(pair.text), self.reader.settings
            places = None
            if self.config.evidence:
                evidence = of_reading(reading, text, pair.document_id, self.config, settings)
                spans, written = list(map(as_answer, evidence)), kept_of(evidence, self.config)
                kept = list(map(as_answer, written))
                numbers = [[pair.row] * len(each.places) for each in written]
                places = place_columns(written, numbers, self.corpus.texts)
            else:
                spans = answers(reading, text, settings, self.config.top_k, pair.document_id)
                spans = rescored(spans, settings)
                kept = chosen(spans, self.config)
            counted(kept, counts)
            made += rows_of(key, kept, [pair.meta] * len(kept), places)
            stand += [None if each.answer is None else (pair.row, each.start, each.end) for each in kept]
            best = spans[0]
            example = Example.of(str(pair.question), pair.row, best, places[0] if places else ())
            examples.setdefault(best.answer is None, example)
        counts["rows"] = len(made)
        schema = placed(made, stand, self.corpus.texts, self.config)
        if self.config.jsonl:
            write_jsonl(storage.join(self.output, f"part-{unit.index:06d}.jsonl"), made, schema)
        return pa.Table.from_pylist(made, schema=schema), counts, list(examples.values())


def _slowest(pairs: Sequence[Pair]) -> list[tuple[str, int]]:
    """The documents of which the most characters were read, summed over all questions."""
    read: dict[str, int] = {}
    for pair in pairs:
        read[str(pair.document_id)] = read.get(str(pair.document_id), 0) + len(pair.text or "")
    return heapq.nlargest(_SLOWEST, read.items(), key=lambda item: item[1])
