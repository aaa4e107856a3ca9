"""A processor: preprocess each row, work on batches in actors, postprocess each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.ray_data.actors import ActorConfig

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Before:
    """Work on rows that comes before that of the actors, and runs beside it, in tasks of one CPU."""

    batches: Callable[[pa.Table], pa.Table]
    """Takes a table of rows and returns one."""
    rows_per_batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Processor:
    """Takes a Dataset and returns one; nothing runs before the result is read or written."""

    batches: type
    """Callable class whose instances take a table of rows and return one."""
    config: ActorConfig
    """What ``batches`` is made from, and the actors that make it."""
    columns: Sequence[str]
    """Columns that the rows must have, after ``preprocess``."""
    added: Sequence[str]
    """Columns that rows have more in the end; none of them may be there before."""
    preprocess: Callable[[Row], Row] | None = None
    """Makes a row's columns from a row; columns that it does not name stay as they are."""
    postprocess: Callable[[Row], Row] | None = None
    """Makes the final row from a row."""
    before: Before | None = None
    """What is done between ``preprocess`` and ``batches``."""

    def __call__(self, dataset: Any) -> Any:
        """Process a ``ray.data.Dataset``.

        Raises:
            InputError: it is known to lack a column, or to have one that would be added.
        """
        if self.preprocess is None:
            schema = dataset.schema(fetch_if_missing=False)
            if schema is not None:
                check_columns(schema.names, self.columns, self.added)
        else:
            dataset = dataset.map(_extend, fn_args=(self.preprocess,))
        if self.before is not None:
            size = self.before.rows_per_batch
            dataset = dataset.map_batches(self.before.batches, batch_size=size, batch_format="pyarrow")
        made = dataset.map_batches(
            self.batches, fn_constructor_kwargs={"config": self.config}, **self.config.options()
        )
        return made if self.postprocess is None else made.map(self.postprocess)


def check_columns(found: Sequence[str], needed: Sequence[str], added: Sequence[str]) -> None:
    """Refuse rows that lack a column, or already have one that is added.

    Raises:
        InputError: which column it is, and what to do.
    """
    if missing := [name for name in needed if name not in found]:
        raise InputError(
            f"the rows lack {', '.join(missing)}; they have {', '.join(found) or 'no columns'}; name their "
            "columns in the config, or make these with preprocess"
        )
    if doubled := [name for name in added if name in found]:
        raise InputError(
            f"the rows have {', '.join(doubled)} already; rename it, or give a prefix for the columns that "
            "are added"
        )


def _extend(row: Row, preprocess: Callable[[Row], Row]) -> Row:
    return {**row, **preprocess(row)}
