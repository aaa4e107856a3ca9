"""Batches of windows: memory-mapped, grouped by length, the same for every number of workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import pad
from tinyqa_ray.teacher_logits.window_dataset import logit_columns

Index = NDArray[np.int64]

_GROUP = 64
"""Batches that are sorted by length together: enough to leave little padding, few enough to stay random."""
_ROUND = 8
"""Padded lengths are multiples of this: it suits tensor cores, and keeps the shapes few, since torch keeps
kernels for every shape in bf16 on a CPU."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of B windows, padded to about its longest, T tokens; counts are of the global batch.

    Shapes:
        input_ids, token_type_ids, token_mask: ``(B, T)``, the mask True on real tokens.
        start_positions, end_positions: ``(B,)``.
        start_logits, end_logits: of N teachers, ``(N, B, T)``; None when the windows carry none.
        samples, tokens, pairs: windows, real tokens, and real (query, key) pairs of the global batch.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    token_mask: Tensor
    start_positions: Tensor
    end_positions: Tensor
    start_logits: Tensor | None
    end_logits: Tensor | None
    samples: int
    tokens: int
    pairs: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        tensors: dict[str, Any] = {
            each.name: value.to(device)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        return replace(self, **tensors)


class WindowData:
    """The windows of a teacher-logits stage, read in any order; local files are memory-mapped."""

    def __init__(self, files: Sequence[str], pad_id: int) -> None:
        self.files = [_open(file) for file in files]
        self.table = pa.concat_tables(self.files)
        self.first: Index = np.cumsum([0, *(file.num_rows for file in self.files)])[:-1]
        self.pad_id = pad_id
        self.lengths: Index = pc.list_value_length(self.table["input_ids"]).to_numpy().astype(np.int64)
        self.longest = int(self.lengths.max(initial=0))
        names = [logit_columns(teacher) for teacher in range(self.table.num_columns)]
        self.logits = [pair for pair in names if pair[0] in self.table.column_names and self._holds(pair[0])]
        """Columns of start and end logits, a pair for each teacher."""
        self.has_labels = bool((self.table["start_position"].to_numpy() >= 0).any())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def _holds(self, column: str) -> bool:
        return bool(self.table[column].null_count == 0)

    def window_ids(self, rows: Index) -> list[int]:
        """Ids of windows, for a message that names them."""
        ids: list[int] = self.table["window_id"].take(pa.array(rows)).to_pylist()
        return ids

    def batch(self, rows: Index, whole: Index) -> Batch:
        """The windows ``rows``, which are part of the global batch ``whole``."""
        part = self._take(rows)
        lengths = self.lengths[rows]
        tokens = min(-(-int(lengths.max()) // _ROUND) * _ROUND, self.longest)
        input_ids = _matrix(part, "input_ids", self.pad_id, tokens)
        typed = part["token_type_ids"].null_count == 0
        counted = self.lengths[whole]
        return Batch(
            input_ids=input_ids,
            token_type_ids=_matrix(part, "token_type_ids", 0, tokens)
            if typed
            else torch.zeros_like(input_ids),
            token_mask=torch.from_numpy(np.arange(tokens) < lengths[:, None]),
            start_positions=torch.from_numpy(part["start_position"].to_numpy().astype(np.int64)),
            end_positions=torch.from_numpy(part["end_position"].to_numpy().astype(np.int64)),
            samples=len(whole),
            tokens=int(counted.sum()),
            pairs=int((counted**2).sum()),
            start_logits=_floats(part, [start for start, _ in self.logits], tokens),
            end_logits=_floats(part, [end for _, end in self.logits], tokens),
        )

    def _take(self, rows: Index) -> pa.Table:
        """The rows as one contiguous table; ``Table.take`` would copy the lists of all files first."""
        files = np.searchsorted(self.first, rows, side="right") - 1
        parts = [
            self.files[file].slice(row - self.first[file], 1) for file, row in zip(files, rows, strict=True)
        ]
        return pa.concat_tables(parts).combine_chunks()


@dataclass(slots=True)
class Order:
    """Which windows each step sees: a function of seed, lengths and batch size alone.

    Each epoch is a permutation of all windows, and the epochs follow one another. The windows of ``_GROUP``
    batches at a time are sorted by length and cut into batches, whose order is shuffled. Every batch has
    exactly ``batch_size`` windows: if the last one lacks some, they come from one more permutation. Nothing
    is dropped.

    Steps can be asked for in any order. The latest permutation and the latest group are kept, so that steps
    in increasing order draw and sort each only once.
    """

    lengths: Index
    batch_size: int
    epochs: float
    seed: int
    _kept_epoch: tuple[int, Index] | None = field(default=None, init=False, repr=False, compare=False)
    _kept_group: tuple[int, list[Index]] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return math.ceil(len(self.lengths) * self.epochs / self.batch_size)

    def batch(self, step: int) -> Index:
        """Windows of one global batch, longest first."""
        number, place = divmod(step, _GROUP)
        kept = self._kept_group
        if kept is None or kept[0] != number:
            kept = self._kept_group = number, self._group(number)
        return kept[1][place]

    def _group(self, number: int) -> list[Index]:
        """Batches of group ``number``, in the order in which they are taken."""
        first = number * _GROUP
        count = min(_GROUP, self.steps - first)
        drawn = self._drawn(first * self.batch_size, (first + count) * self.batch_size)
        by_length = drawn[np.argsort(-self.lengths[drawn], kind="stable")]
        shuffled = np.random.default_rng([self.seed, 1, number]).permutation(count)
        return [by_length[i * self.batch_size : (i + 1) * self.batch_size] for i in shuffled]

    def _drawn(self, start: int, stop: int) -> Index:
        """Windows ``start : stop`` of the epochs' permutations laid end to end."""
        windows = len(self.lengths)
        parts = []
        for epoch in range(start // windows, -(-stop // windows)):
            before = epoch * windows
            parts.append(self._permutation(epoch)[max(start - before, 0) : stop - before])
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> Index:
        kept = self._kept_epoch
        if kept is None or kept[0] != epoch:
            drawn = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.lengths))
            kept = self._kept_epoch = epoch, drawn
        return kept[1]


def micro_batches(batch: Index, rank: int, workers: int, parts: int) -> list[Index]:
    """A worker's share of a global batch, cut into ``parts`` of windows of similar length.

    A worker gets every ``workers``-th window, and so its share of the long ones.
    """
    return np.array_split(batch[rank::workers], parts)


def micro_batch_parts(batch_size: int, accumulation: int, workers: int, present: int) -> int:
    """Number of forwards of each worker in a step when only ``present`` of ``workers`` take part.

    A forward stays about as large as it is with all workers, and has at least one window.
    """
    return max(1, min(-(-accumulation * workers // present), batch_size // present))


def _open(file: str) -> pa.Table:
    filesystem, inner = storage.resolve(file)
    try:
        source = pa.memory_map(inner) if storage.is_local(file) else filesystem.open_input_file(inner)
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file}: cannot be read as Arrow windows ({error})") from None


def _rows(part: pa.Table, name: str) -> list[NDArray[np.generic]]:
    """The lists of a column as numpy views, one for each row."""
    column = part[name].combine_chunks()
    ends = column.offsets.to_numpy()
    values = column.values.to_numpy()
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def _matrix(part: pa.Table, name: str, value: int, tokens: int) -> Tensor:
    return torch.from_numpy(pad(_rows(part, name), value, tokens))  # type: ignore[arg-type]


def _floats(part: pa.Table, columns: Sequence[str], tokens: int) -> Tensor | None:
    """N columns of lists of numbers as one tensor ``(N, B, T)``, 0 on padding."""
    if not columns:
        return None
    rows = [_rows(part, column) for column in columns]
    padded = np.zeros((len(rows), len(part), tokens), dtype=np.float32)
    for n, column in enumerate(rows):
        for i, row in enumerate(column):
            padded[n, i, : len(row)] = row
    return torch.from_numpy(padded)
