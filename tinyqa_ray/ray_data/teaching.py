"""Teachers' logits for the questions of a Dataset: each row gives one row for each of its windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from tinyqa_ray.configs import TeacherLogitsConfig, WindowConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.datasets import squad
from tinyqa_ray.models import hub
from tinyqa_ray.ray_data.actors import ActorConfig
from tinyqa_ray.ray_data.processor import Processor, Row, check_columns
from tinyqa_ray.ray_data.questions import QuestionColumns, paragraphs_of, repeated
from tinyqa_ray.teacher_logits.window_dataset import schema
from tinyqa_ray.teacher_logits.window_writers import WindowWriter

_NAMING = ("question_id", "paragraph_id", "copy")
"""Columns of windows that name their row; here the row's own columns do."""


@dataclass(frozen=True, kw_only=True)
class TeacherLogitsProcessorConfig(ActorConfig):
    """How the rows of a Dataset become windows with teachers' logits."""

    teachers: tuple[str, ...] = ()
    """Folders or hub ids of models, or exports; without teachers, windows have labels only."""
    tokenizer: str | None = None
    """Folder or hub id of the student; the first teacher when not given."""
    combine: Literal["average", "apart"] = "average"
    """How logits of several teachers are kept: their mean, or each teacher's in columns of its own."""
    window: WindowConfig = field(default_factory=WindowConfig)
    """Sizes of the windows."""
    columns: QuestionColumns = field(default_factory=QuestionColumns)
    """Where the rows have their questions."""

    def stage(self) -> TeacherLogitsConfig:
        """The same as the config of the shell's pass.

        Raises:
            InputError: neither teachers nor a tokenizer are given.
        """
        return TeacherLogitsConfig(
            data="a Dataset",
            teachers=self.teachers,
            tokenizer=self.tokenizer,
            combine=self.combine,
            window=self.window,
            max_batch_tokens=self.max_batch_tokens,
            actors=self.actors[1],
            threads=self.threads,
            num_gpus=self.num_gpus,
        )

    @property
    def added(self) -> tuple[str, ...]:
        """Names of the columns that rows have more."""
        apart = len(self.teachers) if self.combine == "apart" else 1
        return (*(name for name in schema(max(apart, 1)).names if name not in _NAMING), "error")


class TeacherLogitsBatches:
    """Cuts tables of questions into windows; for ``map_batches`` with ``batch_format="pyarrow"``.

    Each window is a row, with all columns of its question's row and those of ``window_dataset.WINDOWS``. A
    row that cannot be read stays, with ``error`` and no window.
    """

    def __init__(self, config: TeacherLogitsProcessorConfig) -> None:
        """Load the teachers."""
        config.begin()
        self.config = config
        self.writer = WindowWriter(config.stage(), [0.0] * len(config.teachers))

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Cut the windows of a table of rows.

        Raises:
            InputError: it lacks a column, or has one that would be added.
        """
        config = self.config
        check_columns(rows.column_names, config.columns.needed, config.added)
        paragraphs, errors = paragraphs_of(rows, config.columns)
        windows, _ = self.writer(squad.to_table(paragraphs))
        # A window's copy is the number of its row. Rows without a window come at the end.
        numbers = windows["copy"].to_pylist()
        left = [number for number, error in enumerate(errors) if error is not None]
        made = repeated(rows, numbers + left)
        for column in windows.schema:
            if column.name not in _NAMING:
                values = [*windows[column.name].chunks, pa.nulls(len(left), column.type)]
                made = made.append_column(column.name, pa.chunked_array(values, column.type))
        said = [None] * len(numbers) + [errors[number] for number in left]
        return made.append_column("error", pa.array(said, pa.string()))


def build_teacher_logits_processor(
    config: TeacherLogitsProcessorConfig,
    preprocess: Callable[[Row], Row] | None = None,
    postprocess: Callable[[Row], Row] | None = None,
) -> Processor:
    """Make a processor that turns questions into windows with teachers' logits.

    One row gives one row for each window, so Ray Data's own checkpoints, which mark a row's id as done with
    the first of them that is written, may lose the others; use ``tinyqa teacher-logits`` to resume exactly.

    Args:
        config: teachers, columns and actors.
        preprocess: makes the columns that the config names from a row; other columns stay.
        postprocess: makes the final row from that of a window.

    Raises:
        InputError: neither teachers nor a tokenizer are given.
        StoreError: the hub did not say which commits its ids mean.
    """
    config.stage()
    config = hub.at_commits(config, "teachers", "tokenizer")
    theirs: Any = stage_folder.for_workers(config, "teachers", "tokenizer")
    return Processor(
        batches=TeacherLogitsBatches,
        config=theirs,
        columns=config.columns.needed,
        added=config.added,
        preprocess=preprocess,
        postprocess=postprocess,
    )
