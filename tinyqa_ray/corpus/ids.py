"""Finds the row of an id with 16 bytes of memory per row: 64-bit hashes; the ids stay on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from tinyqa_ray.corpus import tables

Key = tuple[str, ...]
"""An id, or several ids that together identify a row."""
Rows = npt.NDArray[np.int64]

_BATCH = 8192
_COMPARED = 1 << 20


class IdIndex:
    """Finds rows by key in Parquet files: the hash finds a row, the key on disk confirms it."""

    def __init__(self, files: Sequence[str], columns: Sequence[str]) -> None:
        """Read the key ``columns`` (strings without nulls) of ``files`` once."""
        self.files, self.columns = list(files), list(columns)
        counts = []
        for file in self.files:
            with tables.opened(file) as parquet:
                counts.append(parquet.metadata.num_rows)
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._hashes = np.empty(sum(counts), np.uint64)
        at = 0
        for batch in tables.batches(self.files, self.columns, _BATCH):
            keys = zip(*(batch[name].to_pylist() for name in self.columns), strict=True)
            self._hashes[at : at + len(batch)] = _hashes(list(keys))
            at += len(batch)
        # Stable, so that rows with the same hash stay in order.
        self._order: Rows = np.argsort(self._hashes, kind="stable")

    def __len__(self) -> int:
        return len(self._hashes)

    def rows(self, keys: Sequence[Key]) -> Rows:
        """The row of each key: -1 if there is none, the first if the key is repeated."""
        hashes = _hashes(keys)
        left = np.searchsorted(self._hashes, hashes, side="left", sorter=self._order)
        right = np.searchsorted(self._hashes, hashes, side="right", sorter=self._order)
        found = np.full(len(keys), -1, np.int64)
        # One round, unless two rows have the same hash.
        for number in range(int((right - left).max(initial=0))):
            asking = np.flatnonzero((left + number < right) & (found < 0))
            candidates = self._order[left[asking] + number]
            distinct, where = np.unique(candidates, return_inverse=True)
            there = self.keys(distinct)
            pairs = zip(where.tolist(), asking.tolist(), strict=True)
            same = [there[spot] == keys[asked] for spot, asked in pairs]
            found[asking[same]] = candidates[same]
        return found

    def first_repeat(self) -> tuple[int, int] | None:
        """The first row that repeats a key, as (row of the first use, repeating row); None if all differ."""
        after = -1
        while (row := self._next_suspect(after)) is not None:
            first, last = (
                int(np.searchsorted(self._hashes, self._hashes[row], side=side, sorter=self._order))
                for side in ("left", "right")
            )
            group = self._order[first:last]
            *earlier, key = self.keys(group[group <= row])
            if key in earlier:
                return int(group[earlier.index(key)]), row
            after = row
        return None

    def _next_suspect(self, after: int) -> int | None:
        """The first row after ``after`` whose hash an earlier row has too."""
        best = len(self)
        for start in range(0, len(self) - 1, _COMPARED):
            order = self._order[start : start + _COMPARED + 1]
            hashes = self._hashes[order]
            repeats = order[1:][hashes[1:] == hashes[:-1]]
            best = min(best, int(repeats[repeats > after].min(initial=best)))
        return best if best < len(self) else None

    def keys(self, rows: Rows) -> list[Key]:
        """The keys of ``rows``, which ascend; only the row groups that hold them are read."""
        found: list[Key] = []
        file_of = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(file_of):
            start = int(self._ends[number - 1]) if number else 0
            with tables.opened(self.files[number]) as parquet:
                found += self._keys_in(parquet, rows[file_of == number] - start)
        return found

    def _keys_in(self, parquet: pq.ParquetFile, rows: Rows) -> list[Key]:
        sizes = np.array([parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)])
        ends = np.cumsum(sizes)
        groups, where = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        read = parquet.read_row_groups(groups.tolist(), columns=self.columns)
        before_in_file = (ends - sizes)[groups]
        before_in_read = np.cumsum(sizes[groups]) - sizes[groups]
        taken = read.take(rows + (before_in_read - before_in_file)[where])
        return list(zip(*(taken[name].to_pylist() for name in self.columns), strict=True))


def _hashes(keys: Sequence[Key]) -> npt.NDArray[np.uint64]:
    digests = b"".join(_hash(key) for key in keys)
    return np.frombuffer(digests, np.uint64)


def _hash(key: Key) -> bytes:
    return hashlib.blake2b("\0".join(key).encode(), digest_size=8).digest()
