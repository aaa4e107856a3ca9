"""Batches of windows: memory-mapped, grouped by length, the same for every number of workers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.window_columns import WindowColumns, gather, values
from tinyqa_ray.teacher_logits.window_dataset import logit_columns

Index = NDArray[np.int64]

_COLUMNS = ("window_id", "input_ids", "token_type_ids", "start_position", "end_position")
"""Columns that training reads, beside the teachers' logits."""
_GROUP = 64
"""Batches that are sorted by length together: enough to leave little padding, few enough to stay random."""
ROUND = 8
"""Padded lengths are multiples of this, or of a larger number: it suits tensor cores, and keeps the shapes
few, since torch keeps kernels for every shape in bf16 on a CPU."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch of B windows, padded to about its longest, T tokens; counts are of the global batch.

    Shapes:
        input_ids, token_type_ids, token_mask: ``(B, T)``, the mask True on real tokens.
        lengths, start_positions, end_positions: ``(B,)``.
        start_logits, end_logits: of N teachers, ``(N, B, T)``; None when the windows carry none.
        samples, tokens, pairs: windows, real tokens, and real (query, key) pairs of the global batch.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    token_mask: Tensor
    lengths: Tensor
    start_positions: Tensor
    end_positions: Tensor
    start_logits: Tensor | None
    end_logits: Tensor | None
    samples: int
    tokens: int
    pairs: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, where its mask is made.

        The host does not wait for a GPU's copy, which takes its turn after the kernels launched before; it is
        a fraction of a megabyte.
        """
        if device == self.lengths.device:
            return self
        tensors: dict[str, Any] = {
            each.name: copied(value, device)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor) and each.name != "token_mask"
        }
        mask = token_mask(tensors["lengths"], self.input_ids.shape[1])
        return replace(self, **tensors, token_mask=mask)


def token_mask(lengths: Tensor, tokens: int) -> Tensor:
    """Which of ``tokens`` positions of each window are real, ``(B, tokens)``, where ``lengths`` are."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def copied(value: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device; the copy to a GPU may still be going on."""
    # Only from page-locked memory does a copy to a GPU not hold up the thread that begins it.
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


class WindowData:
    """The windows of a teacher-logits stage, read in any order from local files, which are memory-mapped."""

    def __init__(self, files: Sequence[str], pad_id: int, multiple: int = ROUND) -> None:
        """Open ``files``; batches are padded with ``pad_id`` to multiples of ``multiple`` tokens."""
        tables = [read_columns(file, _mapped(file)) for file in files]
        present = tables[0].column_names
        teachers = [pair for pair in map(logit_columns, range(len(present))) if pair[0] in present]
        self.pieces = [WindowColumns(batch) for table in tables for batch in table.to_batches()]
        counts = [piece.windows for piece in self.pieces]
        self.first: Index = np.cumsum([0, *counts])[:-1]
        self.pad_id, self.multiple = pad_id, multiple
        lengths = [piece.lengths("input_ids") for piece in self.pieces]
        self.lengths: Index = np.concatenate([np.empty(0, np.int64), *lengths])
        self.longest = int(self.lengths.max(initial=0))
        self.logits = [pair for pair in teachers if all(pair[0] in piece.lists for piece in self.pieces)]
        """Columns of start and end logits, a pair for each teacher."""
        self.has_labels = any((piece.numbers["start_position"] >= 0).any() for piece in self.pieces)

    def __len__(self) -> int:
        return len(self.lengths)

    def window_ids(self, rows: Index) -> list[int]:
        """Ids of windows, for a message that names them."""
        ids: list[int] = self._numbers("window_id", self._places(rows)).tolist()
        return ids

    def batch(self, rows: Index, whole: Index) -> Batch:
        """The windows ``rows``, which are part of the global batch ``whole``."""
        places = self._places(rows)
        lengths, counted = self.lengths[rows], self.lengths[whole]
        tokens = min(-(-int(lengths.max()) // self.multiple) * self.multiple, self.longest)
        shape = len(rows), tokens
        input_ids = np.full(shape, self.pad_id, dtype=np.int64)
        gather(self.pieces, places, "input_ids", input_ids)
        token_type_ids = np.zeros(shape, dtype=np.int64)
        gather(self.pieces, places, "token_type_ids", token_type_ids)
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            token_type_ids=torch.from_numpy(token_type_ids),
            token_mask=token_mask(torch.from_numpy(lengths), tokens),
            lengths=torch.from_numpy(lengths),
            start_positions=torch.from_numpy(self._numbers("start_position", places)),
            end_positions=torch.from_numpy(self._numbers("end_position", places)),
            samples=len(whole),
            tokens=int(counted.sum()),
            pairs=int((counted**2).sum()),
            start_logits=self._logits([start for start, _ in self.logits], places, tokens),
            end_logits=self._logits([end for _, end in self.logits], places, tokens),
        )

    def words(self, rows: Index) -> Index:
        """Ids of the tokens that micro-batches of the windows ``rows`` hold, padding among them, in order."""
        found = values(self.pieces, self._places(rows), "input_ids")
        ids: Index = np.unique(np.concatenate([*found, [self.pad_id]])).astype(np.int64)
        return ids

    def _places(self, rows: Index) -> list[tuple[int, int]]:
        """The piece of each row, and its place there."""
        pieces = np.searchsorted(self.first, rows, side="right") - 1
        return list(zip(pieces.tolist(), (rows - self.first[pieces]).tolist(), strict=True))

    def _numbers(self, name: str, places: Sequence[tuple[int, int]]) -> Index:
        return np.array([self.pieces[piece].numbers[name][row] for piece, row in places], dtype=np.int64)

    def _logits(
        self, columns: Sequence[str], places: Sequence[tuple[int, int]], tokens: int
    ) -> Tensor | None:
        """The columns of N teachers as one tensor ``(N, B, T)``, 0 on padding."""
        if not columns:
            return None
        padded = np.zeros((len(columns), len(places), tokens), dtype=np.float32)
        for name, matrix in zip(columns, padded, strict=True):
            gather(self.pieces, places, name, matrix)
        return torch.from_numpy(padded)


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


def training_columns(present: Sequence[str]) -> list[str]:
    """Those of the columns ``present`` that training reads, in their order."""
    read = {*_COLUMNS, *itertools.chain.from_iterable(map(logit_columns, range(len(present))))}
    return [name for name in present if name in read]


def read_columns(file: str, source: Any) -> pa.Table:
    """The columns that training reads, of an Arrow stream; nothing is copied.

    Args:
        file: name of the stream, for a message.
        source: a buffer, or a memory map.

    Raises:
        InputError: it is no Arrow stream of windows.
    """
    try:
        schema = pa.ipc.read_schema(source)
        chosen = [schema.get_field_index(name) for name in training_columns(schema.names)]
        if isinstance(source, pa.MemoryMappedFile):
            source.seek(0)
        return pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(included_fields=chosen)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise faults.refused(file, error, f"{file}: cannot be read as Arrow windows ({error})") from None


def _mapped(file: str) -> pa.MemoryMappedFile:
    try:
        return pa.memory_map(storage.absolute(file))
    except OSError as error:
        raise InputError(f"{file}: cannot be read as Arrow windows ({error})") from None
