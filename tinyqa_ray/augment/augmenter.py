"""Originals in, originals and copies out: what an actor of the augmentation does to a shard."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from tinyqa_ray.augment.agreement import Agreement
from tinyqa_ray.augment.masked import MaskedCandidates
from tinyqa_ray.augment.neighbours import Neighbours
from tinyqa_ray.augment.rewriting import HAYSTACK, SAFE, Rewriting, Span, Words, copies
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.datasets import squad
from tinyqa_ray.reader import Reader

Counts = dict[str, float]


class Augmenter:
    """Writes the original and the copies of each paragraph of a shard."""

    side_by_side = True

    def __init__(self, config: AugmentConfig, neighbours: str | Neighbours) -> None:
        """Load the models.

        Args:
            config: what to make.
            neighbours: of all words, or a Parquet file of ``Neighbours.to_table``.
        """
        if isinstance(neighbours, str):
            filesystem, inner = storage.resolve(neighbours)
            neighbours = Neighbours.from_table(pq.read_table(inner, filesystem=filesystem))
        self.config = config
        self.rules = HAYSTACK if config.style == "haystack" else SAFE
        self.neighbours = neighbours
        self.masked = self.agreement = None
        if config.masked_lm is None and config.teacher is None:
            return
        import torch

        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        device = "cuda" if config.num_gpus else "cpu"
        if config.masked_lm is not None:
            assert config.candidates is not None
            assert config.masked_share is not None
            self.masked = MaskedCandidates.load(
                config.masked_lm,
                device=device,
                k=config.candidates,
                masked_share=config.masked_share,
                max_batch_tokens=config.max_batch_tokens,
                seed=config.seed,
            )
        if config.teacher is not None:
            reader = Reader.from_pretrained(config.teacher, device=device)
            reader.engine.max_batch_tokens = min(reader.engine.max_batch_tokens, config.max_batch_tokens)
            self.agreement = Agreement(reader)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, Counts]:
        """Paragraphs in, paragraphs × (1 + copies) out, in order."""
        originals = squad.from_table(rows)
        words = [Words.of(each.context, _kept(each), self.rules) for each in originals]
        made: list[squad.Paragraph] = []
        counts: Counts = {"words": 0, "words_replaced": 0, "questions_left_out": 0}
        for paragraph, own, candidates in zip(originals, words, self._candidates(words), strict=True):
            made.append(paragraph)
            for number, rewriting in enumerate(self._rewritten(paragraph, own, candidates), start=1):
                made.append(_copy(paragraph, number, own.keep, rewriting))
                counts["words_replaced"] += rewriting.replaced
                counts["words"] += len(own.spans)
        if self.agreement is not None:
            made = self._judged(self.agreement, made, counts)
        counts["copies"] = len(made)
        counts["questions"] = sum(len(paragraph.questions) for paragraph in made)
        return squad.to_table(made), counts

    def _candidates(self, paragraphs: Sequence[Words]) -> list[list[Sequence[str]]]:
        """Candidates of each word of each paragraph: the masked LM's, else the word's neighbours."""
        wanted = [words.changeable for words in paragraphs]
        proposed: Sequence[Sequence[list[str] | None]] = [[None] * len(spans) for spans in wanted]
        if self.masked is not None:
            proposed = self.masked.candidates([words.context for words in paragraphs], wanted)
        found: list[list[Sequence[str]]] = []
        for words, offered in zip(paragraphs, proposed, strict=True):
            masked = iter(offered)
            row: list[Sequence[str]] = []
            for (start, end), may_change in zip(words.spans, words.may_change, strict=True):
                own = next(masked) if may_change else []
                row.append(self.neighbours.lookup(words.context[start:end]) if own is None else own)
            found.append(row)
        return found

    def _rewritten(
        self, paragraph: squad.Paragraph, words: Words, candidates: Sequence[Sequence[str]]
    ) -> list[Rewriting]:
        return copies(
            words,
            candidates,
            n=self.config.copies,
            replace_probability=self.config.replace_probability,
            # The seed of a row is its id: any retry, on any actor, writes the same bytes.
            seed=[self.config.seed, *_numbers(paragraph.paragraph_id)],
        )

    def _judged(
        self, agreement: Agreement, paragraphs: Sequence[squad.Paragraph], counts: Counts
    ) -> list[squad.Paragraph]:
        """Count the gold answers that the teacher finds.

        With ``keep_if_teacher_agrees``, drop the questions of copies whose answers it does not find.
        """
        kept = []
        for paragraph, found in zip(paragraphs, agreement.found(paragraphs), strict=True):
            where = "copies" if paragraph.copy else "originals"
            for name, value in (("asked", sum(f is not None for f in found)), ("found", found.count(True))):
                counts[f"{where}_{name}"] = counts.get(f"{where}_{name}", 0) + value
            if self.config.keep_if_teacher_agrees and paragraph.copy and False in found:
                counts["questions_left_out"] += found.count(False)
                questions = [q for q, f in zip(paragraph.questions, found, strict=True) if f is not False]
                if not questions:
                    continue
                paragraph = replace(paragraph, questions=tuple(questions))
            kept.append(paragraph)
        return kept


def _kept(paragraph: squad.Paragraph) -> list[Span]:
    """The spans of all answers of a paragraph."""
    return sorted(
        {
            (answer.answer_start, answer.answer_start + len(answer.text))
            for question in paragraph.questions
            for answer in question.answers
        }
    )


def _copy(
    paragraph: squad.Paragraph, number: int, keep: Sequence[Span], rewriting: Rewriting
) -> squad.Paragraph:
    """Copy ``number`` of a paragraph; its answers move from their spans in ``keep`` to the new places."""
    starts = dict(zip(keep, rewriting.starts, strict=True))

    def moved(answer: squad.GoldAnswer) -> squad.GoldAnswer:
        start = answer.answer_start
        return replace(answer, answer_start=starts[(start, start + len(answer.text))])

    questions = tuple(
        replace(question, answers=tuple(moved(answer) for answer in question.answers))
        for question in paragraph.questions
    )
    return replace(
        paragraph,
        paragraph_id=f"{paragraph.source_id}~{number}",
        context=rewriting.context,
        questions=questions,
        copy=number,
    )


def _numbers(text: str) -> list[int]:
    """Two 32-bit numbers that stand for a text; always two, since numpy's seeds ignore trailing zeros."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return [int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")]
