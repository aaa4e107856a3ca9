"""Memory is bounded by configuration: ten times the corpus takes as much, but for 16 bytes a document."""

from __future__ import annotations

import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.corpus import formats, inputs, routing, tables

DOCUMENTS = 200
TEXT = "The owl hunts at dusk. " * 200


def write_corpus(place: Path, times: int, name: str) -> str:
    """A corpus of ``times`` MB, or its questions."""
    file = place / f"{times}-{name}"
    rows = range(DOCUMENTS * times)
    if name.endswith(".parquet"):
        # One row group: as large as the file.
        table = pa.table({"id": [str(i) for i in rows], "text": [f"{i} {TEXT}" for i in rows]})
        options = {
            "use_dictionary": False,
            "compression": "none",
            "data_page_size": 1 << 14,
            "write_batch_size": 8,
        }
        pq.write_table(table, file, row_group_size=len(rows), **options)
    else:
        kinds = {"d.jsonl": {"text": TEXT}, "q.jsonl": {"question": "Who?", "document_id": ""}}
        with file.open("w") as sink:
            for i in rows:
                record = {key: f"{value}{i}" for key, value in kinds[name].items()}
                sink.write(json.dumps({"id": i} | record) + "\n")
    return str(file)


def peak(work: Callable[[], object]) -> int:
    """Bytes that Python and Arrow held at most during ``work``, beyond those before."""
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    add = tables.Parts.add
    # What Arrow reads of a file is not of the pool that can be set, so it is looked at with each row.
    held = [default.bytes_allocated()] * 2

    def watched(self: tables.Parts, *values: object) -> None:
        add(self, *values)
        held[1] = max(held[1], default.bytes_allocated())

    gc.collect()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        with mock.patch.object(tables.Parts, "add", watched):
            work()
        return tracemalloc.get_traced_memory()[1] + max(pool.max_memory(), held[1] - held[0])
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)


@pytest.fixture(autouse=True)
def _small_budgets() -> object:
    budgets = {"GROUP_CHARACTERS": 1 << 16, "FILE_CHARACTERS": 1 << 18, "ASKED_PER_GROUP": 16}
    with (
        mock.patch.multiple(tables, **budgets),
        mock.patch.multiple(formats, _READ=1 << 14, _BATCH_BYTES=1 << 16),
        mock.patch.multiple(routing, RUN_ROWS=128, _READ_ROWS=64),
        mock.patch.object(inputs, "ROWS_PER_FILE", 256),
    ):
        yield


@pytest.mark.parametrize("name", ["d.jsonl", "d.parquet"])
def test_ten_times_the_documents_take_the_same_memory(tmp_path: Path, name: str) -> None:
    peaks = []
    for times in (3, 30):
        file = write_corpus(tmp_path, times, name)
        peaks.append(peak(lambda file=file: inputs.write_documents(file, f"{file}-made", 256)))
    assert peaks[1] < 1.5 * peaks[0] + 32 * 30 * DOCUMENTS, peaks


def test_ten_times_the_questions_take_the_same_memory(tmp_path: Path) -> None:
    documents = inputs.write_documents(write_corpus(tmp_path, 10, "d.jsonl"), str(tmp_path / "documents"))
    peaks = []
    for times in (1, 10):
        file = write_corpus(tmp_path, times, "q.jsonl")

        def work(file: str = file) -> None:
            questions = inputs.write_questions(file, f"{file}-made")
            runs = routing.route(questions.files, documents, f"{file}-asked")
            assert tables.asked_of(runs, 10, 20).num_rows == 11

        peaks.append(peak(work))
    assert peaks[1] < 1.5 * peaks[0] + 32 * 10 * DOCUMENTS, peaks
