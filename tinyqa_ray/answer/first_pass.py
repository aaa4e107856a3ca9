"""The first pass of a cascade: a smaller model reads all pairs of a unit, and says how sure it is of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tinyqa_ray.answer.corpus import Corpus
from tinyqa_ray.answer.pairs import Pair, pairs_of
from tinyqa_ray.answer.plan import Unit, unit_of
from tinyqa_ray.configs import AnswerConfig
from tinyqa_ray.core import shards
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.corpus import tables
from tinyqa_ray.reader.cascade import kept
from tinyqa_ray.reader.reader import first_reader

FIRST = pa.schema([pa.field("question_row", pa.int64()), pa.field("margin", pa.float64())])
"""A row for each pair of a unit, in the order of ``pairs_of``; for the margin see ``reader.cascade``."""
_BEST = pa.schema([pa.field("best", pa.float64())])


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstPass:
    """What the first pass found."""

    files: tuple[str, ...]
    """Of schema ``FIRST``, by index of the unit."""
    best: str
    """File with the largest margin of each question, by its row."""
    keep: float
    """How far below it a pair may be to be kept."""

    def best_margins(self) -> NDArray[np.float64]:
        """The largest margin of each question, by its row; 8 bytes a question."""
        with tables.opened(self.best) as parquet:
            return np.asarray(parquet.read()["best"].to_numpy(), dtype=np.float64)

    def kept(self, unit: Unit, pairs: Sequence[Pair], best: NDArray[np.float64]) -> list[Pair]:
        """The pairs of a unit that the larger model must read."""
        with tables.opened(self.files[unit.index]) as parquet:
            table = parquet.read()
        found = np.asarray(table["margin"].to_numpy(), dtype=np.float64)
        rows = table["question_row"].to_numpy()
        assert [pair.question_row for pair in pairs] == rows.tolist(), f"unit {unit.index} was read otherwise"
        mask = kept(found, best[rows], self.keep)
        return [pair for pair, stays in zip(pairs, mask, strict=True) if stays]


class FirstReader:
    """Reads units with the smaller model; each actor makes one."""

    def __init__(self, config: AnswerConfig, corpus: Corpus) -> None:
        """Load the model.

        Args:
            config: configuration of the stage.
            corpus: files of documents and questions.
        """
        import torch

        assert config.first_pass is not None
        quiet_models()
        torch.set_num_threads(config.threads or cores(config.actors))
        self.corpus, self.max_answer_tokens = corpus, config.max_answer_tokens
        device = "cuda" if config.num_gpus else "cpu"
        self.first = first_reader(config.first_pass, window=config.window, device=device)

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Turn a unit into rows of ``FIRST``."""
        pairs = pairs_of(unit_of(rows), self.corpus)
        asked = [(pair.question, pair.text) for pair in pairs]
        margins = self.first.margins(asked, max_answer_tokens=self.max_answer_tokens)
        columns = [pa.array([pair.question_row for pair in pairs], pa.int64()), pa.array(margins)]
        return pa.Table.from_arrays(columns, schema=FIRST), {}


def write_best(files: Sequence[str], questions: int, path: str) -> None:
    """Write the largest margin of each question, over the files of all units."""
    best = np.full(questions, -np.inf)
    for file in files:
        with tables.opened(file) as parquet:
            table = parquet.read()
        rows, found = table["question_row"].to_numpy(), table["margin"].to_numpy()
        known = ~np.isnan(found)
        np.maximum.at(best, rows[known], found[known])
    shards.write_input(path, pa.Table.from_arrays([pa.array(best)], schema=_BEST))
