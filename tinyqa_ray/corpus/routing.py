"""Questions that name a document → the row of that document, in sorted runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tinyqa_ray.core import storage
from tinyqa_ray.corpus import sources, tables
from tinyqa_ray.corpus.ids import IdIndex

RUN_ROWS = 1 << 18
RUN_BYTES = 1 << 26
"""Most rows and bytes of a run, which is sorted in memory."""
_READ_ROWS = 1 << 12


def route(question_files: Sequence[str], document_files: Sequence[str], folder: str) -> list[str]:
    """Write the questions of each document to ``run-000000.parquet`` and so on (schema ``tables.ASKED``).

    Each run is sorted by row, then by question; ``tables.asked_of`` reads across them. A question
    whose document does not exist has row -1 and an error. Memory holds 16 bytes per document and one run.
    The call continues an interrupted one.

    Args:
        question_files: from ``inputs.write_questions``; all questions name a document.
        document_files: from ``inputs.write_documents``.
        folder: where the runs go; use it for nothing else.
    """
    if done := tables.finished(folder):
        return list(done["files"])
    index = IdIndex(document_files, ["document_id"])
    files = []
    for number, questions in enumerate(_runs(question_files)):
        files.append(storage.join(folder, f"run-{number:06d}.parquet"))
        if storage.kind(files[-1]) == "absent":
            tables.write(files[-1], _routed(questions, index), tables.ASKED_PER_GROUP)
    tables.finish(folder, files)
    return files


def _routed(questions: pa.Table, index: IdIndex) -> pa.Table:
    documents = questions["document_id"].to_pylist()
    rows = index.rows([(document,) for document in documents])
    errors = questions["error"].to_pylist()
    for place in np.flatnonzero(rows < 0):
        errors[place] = errors[place] or f"document {sources.shown(documents[place])} is not in the corpus"
    columns = [rows, *questions.columns[:-1], pa.array(errors, pa.string())]
    # Stable, so that the questions of a document stay in order.
    return pa.table(columns, schema=tables.ASKED).take(np.argsort(rows, kind="stable"))


def _runs(files: Sequence[str]) -> Iterator[pa.Table]:
    """The questions in order, in tables of bounded size."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in tables.batches(files, tables.QUESTIONS.names, _READ_ROWS):
        pending.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= RUN_ROWS or size >= RUN_BYTES:
            yield pa.Table.from_batches(pending)
            pending, rows, size = [], 0, 0
    if pending:
        yield pa.Table.from_batches(pending)
