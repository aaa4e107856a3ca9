"""What a selection of passages costs in recall and saves in reading, on questions with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tinyqa_ray.configs import CandidateConfig
from tinyqa_ray.corpus.bm25 import Statistics, best_passages
from tinyqa_ray.corpus.candidates import Indexer
from tinyqa_ray.corpus.passage_index import ShardIndex
from tinyqa_ray.corpus.terms import Analyzer
from tinyqa_ray.datasets.squad import Paragraph


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What the best ``candidates`` passages of every question hold, in shares from 0 to 1."""

    candidates: int
    own: float
    """Of all questions, those whose own paragraph is among the passages, or a part of it."""
    answer: float
    """Of the questions with answers, those with a passage that holds the text of one, case aside."""
    saved: float
    """Of all pairs of a question and a passage, those that need not be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Recall of a selection; ``str()`` of it is a table to print."""

    questions: int
    answerable: int
    passages: int
    recalls: tuple[Recall, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.questions:,} questions, {self.answerable:,} with answers; {self.passages:,} passages",
            f"{'candidates':>10} {'own paragraph':>14} {'answer text':>12} {'pairs saved':>12}",
        ]
        for recall in self.recalls:
            shares = f"{recall.own:>14.1%} {recall.answer:>12.1%} {recall.saved:>12.1%}"
            lines.append(f"{recall.candidates:>10,} {shares}")
        return "\n".join(lines)


def coverage(
    paragraphs: Sequence[Paragraph], config: CandidateConfig, at: Sequence[int] = (1, 5, 10, 50)
) -> Coverage:
    """Ask every question of all paragraphs, and see where its own comes, and its answer.

    Args:
        paragraphs: of SQuAD 2.0 data, few enough for memory; each is a document of the corpus.
        config: how passages are cut and weighed; its ``candidates`` are not used.
        at: numbers of candidates to report.

    Raises:
        InputError: an unknown language.
    """
    contexts = [paragraph.context for paragraph in paragraphs]
    documents = {
        "row": pa.array(range(len(contexts)), pa.int64()),
        "document_id": [paragraph.paragraph_id for paragraph in paragraphs],
        "text": pa.array(contexts, pa.large_string()),
    }
    made, counts = Indexer(config)(pa.table(documents))
    index = ShardIndex(made)
    corpus = Statistics(passages=len(index), terms=int(counts["terms"]))
    rows, starts, ends = (index.places[name].to_pylist() for name in ("row", "start", "end"))
    texts = [contexts[row][start:end].casefold() for row, start, end in zip(rows, starts, ends, strict=True)]
    asked = [(own, question) for own, paragraph in enumerate(paragraphs) for question in paragraph.questions]
    analyzer = Analyzer(config.language)
    terms = [analyzer.terms(question.question) for _, question in asked]
    ranked = best_passages(terms, [index], corpus, max(at), k1=config.k1, b=config.b)
    # The place of the first passage that is right, infinity where none is.
    own = np.full(len(asked), np.inf)
    answer = np.full(len(asked), np.inf)
    for i, ((paragraph, question), (numbers, _)) in enumerate(zip(asked, ranked, strict=True)):
        wanted = {gold.text.casefold() for gold in question.answers}
        for place, number in reversed(list(enumerate(numbers.tolist()))):
            if rows[number] == paragraph:
                own[i] = place
            if any(text in texts[number] for text in wanted):
                answer[i] = place
    found = np.array([len(numbers) for numbers, _ in ranked])
    answerable = np.array([bool(question.answers) for _, question in asked], bool)
    return Coverage(
        questions=len(asked),
        answerable=int(answerable.sum()),
        passages=len(index),
        recalls=tuple(
            Recall(
                candidates=n,
                own=_share(own < n),
                answer=_share(answer[answerable] < n),
                saved=1 - np.minimum(found, n).sum() / max(len(asked) * len(index), 1),
            )
            for n in at
        ),
    )


def _share(flags: npt.NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0
