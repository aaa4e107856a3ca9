"""Augments the questions of a Dataset: each row gives itself and its copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.augment.work import neighbours_of
from tinyqa_ray.configs import AugmentConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.datasets import squad
from tinyqa_ray.models import hub
from tinyqa_ray.ray_data.actors import ActorConfig
from tinyqa_ray.ray_data.processor import Processor, Row, check_columns
from tinyqa_ray.ray_data.questions import QuestionColumns, answers_like, paragraphs_of, repeated

_ADDED = ("copy", "error")


@dataclass(frozen=True, kw_only=True)
class AugmentationProcessorConfig(ActorConfig):
    """How the rows of a Dataset are augmented; see ``AugmentConfig`` for what the fields mean."""

    masked_lm: str | None = None
    word_vectors: str | None = None
    embeddings: str | None = None
    copies: int = 20
    replace_probability: float = 0.4
    candidates: int | None = None
    masked_share: float | None = None
    style: Literal["safe", "haystack"] = "safe"
    teacher: str | None = None
    """With ``keep_if_teacher_agrees``: model that must still find a gold span for its copy to be kept."""
    keep_if_teacher_agrees: bool = False
    seed: int = 42
    columns: QuestionColumns = field(default_factory=QuestionColumns)
    """Where the rows have their questions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masked_lm == "none":  # as in ``AugmentConfig``
            object.__setattr__(self, "masked_lm", None)

    def stage(self) -> AugmentConfig:
        """The same as the config of the shell's pass.

        Raises:
            InputError: see ``AugmentConfig``.
        """
        config = AugmentConfig(
            data="a Dataset",
            masked_lm=self.masked_lm,
            word_vectors=self.word_vectors,
            embeddings=self.embeddings,
            copies=self.copies,
            replace_probability=self.replace_probability,
            candidates=self.candidates,
            masked_share=self.masked_share,
            style=self.style,
            teacher=self.teacher,
            keep_if_teacher_agrees=self.keep_if_teacher_agrees,
            seed=self.seed,
            actors=self.actors[1],
            threads=self.threads,
            num_gpus=self.num_gpus,
        )
        most = self.max_batch_tokens
        return config if most is None else replace(config, max_batch_tokens=most)


class AugmentBatches:
    """Augments tables of questions; for ``map_batches`` with ``batch_format="pyarrow"``.

    Each row is followed by its copies, which have other contexts, answers moved accordingly, and all other
    columns of the row; ``copy`` numbers them from 1, and is 0 for the row itself. A row that cannot be read
    stays, with ``error``, and has no copies.
    """

    def __init__(self, config: AugmentationProcessorConfig) -> None:
        """Load the models, and find the neighbours of all words."""
        config.begin()
        self.config = config
        stage = config.stage()
        self.augmenter = Augmenter(stage, neighbours_of(stage))

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Augment a table of rows.

        Raises:
            InputError: it lacks a column, or has one that would be added.
        """
        columns = self.config.columns
        check_columns(rows.column_names, columns.needed, _ADDED)
        paragraphs, errors = paragraphs_of(rows, columns)
        numbers = {each.paragraph_id: each.copy for each in paragraphs}
        originals = squad.to_table(replace(each, copy=0) for each in paragraphs)
        made, _ = self.augmenter(originals)
        copies = [each for each in squad.from_table(made) if each.questions]
        left = [number for number, error in enumerate(errors) if error is not None]
        changed = [columns.context, columns.answers]
        table = repeated(rows, [numbers[each.source_id] for each in copies] + left)
        for name in changed:
            if name in table.column_names:
                place, kind = table.column_names.index(name), table[name].type
                old = table[name].slice(len(copies)).to_pylist()
                new = (
                    [each.context for each in copies]
                    if name == columns.context
                    else [answers_like(each, kind) for each in copies]
                )
                table = table.set_column(place, name, pa.array(new + old, kind))
        copy = [each.copy for each in copies] + [0] * len(left)
        said = [None] * len(copies) + [errors[number] for number in left]
        table = table.append_column("copy", pa.array(copy, pa.int32()))
        return table.append_column("error", pa.array(said, pa.string()))


def build_augmentation_processor(
    config: AugmentationProcessorConfig,
    preprocess: Callable[[Row], Row] | None = None,
    postprocess: Callable[[Row], Row] | None = None,
) -> Processor:
    """Make a processor that gives each row of a Dataset copies with other words.

    One row gives several, so Ray Data's own checkpoints, which mark a row's id as done with the first of
    them that is written, may lose the others; use ``tinyqa augment`` to resume exactly.

    Args:
        config: sources of words, columns and actors.
        preprocess: makes the columns that the config names from a row; other columns stay.
        postprocess: makes the final row from an original or a copy.

    Raises:
        InputError: nothing proposes words.
        StoreError: the hub did not say which commits its ids mean.
    """
    config.stage()
    config = hub.at_commits(config, "masked_lm", "embeddings", "teacher")
    theirs: Any = stage_folder.for_workers(config, "masked_lm", "word_vectors", "embeddings", "teacher")
    return Processor(
        batches=AugmentBatches,
        config=theirs,
        columns=config.columns.needed,
        added=_ADDED,
        preprocess=preprocess,
        postprocess=postprocess,
    )
