"""How passages are selected before a model reads them."""

from __future__ import annotations

from dataclasses import dataclass

from tinyqa_ray.configs.checks import at_least, share
from tinyqa_ray.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateConfig:
    """How BM25 selects the passages that a question is asked of."""

    candidates: int = 50
    """Passages of the corpus that a question is asked of, at most."""
    passage_words: int = 200
    """Words of a passage; a longer document is cut into several."""
    passage_overlap: int = 50
    """Words that neighbouring passages of a document share, at least."""
    language: str | None = "english"
    """Stemmer and stop words, by the name of Snowball's stemmer; none takes words as they are."""
    k1: float = 1.2
    """BM25: how slowly a further occurrence of a term stops to count."""
    b: float = 0.75
    """BM25: how much a long passage is held against it, from 0 to 1."""
    documents_per_shard: int = 8192
    """Documents in one file of the index."""
    questions_per_run: int = 1024
    """Questions whose passages are selected together."""

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates", "passage_words", "documents_per_shard", "questions_per_run")
        at_least(self, 0, "passage_overlap", "k1")
        share(self, "b")
        # The index counts a term of a passage in 16 bits.
        if self.passage_words >= 1 << 16:
            raise InputError(f"passage_words is {self.passage_words}; it must be below {1 << 16}")
        if self.passage_overlap >= self.passage_words:
            raise InputError(
                f"passage_overlap is {self.passage_overlap}; it must be below passage_words, "
                f"{self.passage_words}"
            )
