"""Windows of an Arrow file as numpy views: a row is found without going through Arrow, and without a copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class WindowColumns:
    """The columns of one record batch of W windows; a column that holds a null is left out.

    Slicing an Arrow table makes Python objects for every column: some milliseconds for each batch that is
    trained on. A numpy view takes a microsecond.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        """Views of the columns of ``batch``, whose memory stays as long as this object."""
        self.numbers: dict[str, NDArray[Any]] = {}
        """Columns of one number a window, ``(W,)``."""
        self.lists: dict[str, tuple[NDArray[np.int32], NDArray[Any]]] = {}
        """Columns of lists: where each begins, ``(W + 1,)``, and the values of all, end to end."""
        self.windows: int = batch.num_rows
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if column.null_count:
                continue
            if pa.types.is_list(column.type):
                self.lists[name] = column.offsets.to_numpy(), column.values.to_numpy()
            else:
                self.numbers[name] = column.to_numpy()

    def lengths(self, name: str) -> NDArray[np.int64]:
        """Number of values of each window in a column of lists, ``(W,)``."""
        return np.diff(self.lists[name][0]).astype(np.int64)


def values(
    pieces: Sequence[WindowColumns], places: Sequence[tuple[int, int]], name: str
) -> list[NDArray[Any]]:
    """Views of lists of a column, which every piece has; ``places`` as for ``gather``."""
    columns = [(pieces[piece].lists[name], window) for piece, window in places]
    return [found[offsets[window] : offsets[window + 1]] for (offsets, found), window in columns]


def gather(
    pieces: Sequence[WindowColumns], places: Sequence[tuple[int, int]], name: str, into: NDArray[Any]
) -> None:
    """Copy lists of a column into the rows of a matrix, each from its beginning.

    Args:
        pieces: all windows.
        places: for each of B rows its piece, and the window in it; pieces without the column are passed over.
        name: the column.
        into: ``(B, T)``, T not below any length; what lies behind a list stays.
    """
    for row, (piece, window) in zip(into, places, strict=True):
        found = pieces[piece].lists.get(name)
        if found is not None:
            offsets, values = found
            start, stop = offsets[window], offsets[window + 1]
            row[: stop - start] = values[start:stop]
