"""The augmentation stage: paragraphs → paragraphs × copies, on Ray Data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tinyqa_ray import models, runs, shards, squad, storage
from tinyqa_ray.augment.neighbours import Neighbours, neighbour_table, whole_words
from tinyqa_ray.augment.rewriting import Span, copies, word_spans
from tinyqa_ray.cluster import connected
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentReport:
    """What an augmentation made."""

    paragraphs: int
    """Paragraphs read."""
    copies: int
    """Paragraphs written, the originals among them."""
    questions: int
    """Questions written, the originals among them."""
    words: int
    """Words of the copies, originals left out."""
    words_replaced: int
    """Words that changed."""


def augment(config: AugmentConfig, output: str, progress: shards.Progress | None = None) -> AugmentReport:
    """Multiply the paragraphs of ``config.data`` into Parquet under ``output``; run again, it continues.

    Writes ``paragraphs/*.parquet`` (schema ``squad.PARAGRAPHS``, copy 0 the original) and
    ``neighbours.parquet``, the candidates of every word.

    Raises:
        InputError: data or embeddings that cannot be read, or a folder of another run.
    """
    with runs.stage(output, config, inputs=("data", "embeddings")) as stage:
        if stage.finished:
            return stage.report(AugmentReport)
        paragraphs, neighbours = stage.path("_input.parquet"), stage.path("neighbours.parquet")
        source = squad.read_squad(config.data)
        if any(paragraph.copy for paragraph in source):
            raise InputError(f"{config.data}: holds copies already; give the data that they were made of")
        if storage.kind(neighbours) == "absent":
            _write(neighbours, embedding_neighbours(config.embeddings, config.candidates).to_table())
        _write(paragraphs, squad.to_table(source))
        plan = shards.cut([paragraphs], config.rows_per_shard, stage.path(squad.FOLDER), "parquet")
        options: dict[str, Any] = {"config": config, "neighbours": neighbours}
        with connected():
            counts = shards.run(plan, Augmenter, options, shards.Workers(actors=config.actors), progress)
        return stage.publish(
            AugmentReport(paragraphs=len(source), **{name: int(value) for name, value in counts.items()})
        )


def embedding_neighbours(model: str, k: int) -> Neighbours:
    """The k nearest whole words of a model's vocabulary, by cosine of its input embeddings."""
    matrix = models.input_embeddings(model)
    words, ids = whole_words(models.load_tokenizer(model).get_vocab())
    return neighbour_table(words, matrix[np.array(ids)], k=k)


class Augmenter:
    """Writes the original and the copies of each paragraph of a shard."""

    def __init__(self, config: AugmentConfig, neighbours: str) -> None:
        self.config = config
        filesystem, inner = storage.resolve(neighbours)
        self.neighbours = Neighbours.from_table(pq.read_table(inner, filesystem=filesystem))

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Paragraphs in, paragraphs × (1 + copies) out, in order."""
        made: list[squad.Paragraph] = []
        words = replaced = 0
        for paragraph in squad.from_table(rows):
            made.append(paragraph)
            for number, (text, starts, changed, seen) in enumerate(self._rewritten(paragraph), start=1):
                made.append(_copy(paragraph, number, text, starts))
                replaced += changed
                words += seen
        questions = sum(len(paragraph.questions) for paragraph in made)
        counts: dict[str, float] = {
            "copies": len(made),
            "questions": questions,
            "words": words,
            "words_replaced": replaced,
        }
        return squad.to_table(made), counts

    def _rewritten(self, paragraph: squad.Paragraph) -> list[tuple[str, dict[Span, int], int, int]]:
        """New text, new start of every answer's span, words changed and words in all, of each copy."""
        context = paragraph.context
        keep = sorted(
            {
                (answer.answer_start, answer.answer_start + len(answer.text))
                for question in paragraph.questions
                for answer in question.answers
            }
        )
        words = word_spans(context)
        return [
            (copy.context, dict(zip(keep, copy.starts, strict=True)), copy.replaced, len(words))
            for copy in copies(
                context,
                keep,
                [self.neighbours.lookup(context[start:end]) for start, end in words],
                n=self.config.copies,
                replace_probability=self.config.replace_probability,
                # The seed of a row is its id: any retry, on any actor, writes the same bytes.
                seed=[self.config.seed, *_numbers(paragraph.paragraph_id)],
            )
        ]


def _copy(paragraph: squad.Paragraph, number: int, text: str, starts: dict[Span, int]) -> squad.Paragraph:
    """Copy ``number`` of a paragraph, its answers moved to where they are now."""

    def moved(answer: squad.GoldAnswer) -> squad.GoldAnswer:
        start = answer.answer_start
        return replace(answer, answer_start=starts[(start, start + len(answer.text))])

    questions = tuple(
        replace(question, answers=tuple(moved(answer) for answer in question.answers))
        for question in paragraph.questions
    )
    name = f"{paragraph.source_id}~{number}"
    return replace(paragraph, paragraph_id=name, context=text, questions=questions, copy=number)


def _numbers(text: str) -> list[int]:
    """Two 32-bit numbers that stand for a text; always two, since numpy's seeds ignore trailing zeros."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return [int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")]


def _write(path: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_atomic(path, sink.getvalue().to_pybytes())
