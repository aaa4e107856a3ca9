"""Processors in Ray Data's own pipelines: sources, sinks, failures, checkpoints."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.ray_data import AnswerProcessorConfig, Processor, build_answer_processor
from tinyqa_ray.reader import Reader

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster", "bare_context")]

ROWS = [
    {
        "id": number,
        "question": "Who proved it?",
        "context": f"Robert Boyle proved law {number}.",
        "price": number / 4,
    }
    for number in range(24)
]
TABLE = pa.Table.from_pylist(ROWS)


@pytest.fixture
def bare_context() -> Iterator[None]:
    """Ray Data without progress bars, and as it was afterwards."""
    from ray.data import DataContext

    context = DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    yield
    context.enable_progress_bars = before
    context.checkpoint_config = None


def processor(model: str, **options: Any) -> Processor:
    given: dict[str, Any] = {"model": model, "threads": 1, "num_cpus": 0.5, "threshold": 1.0, **options}
    hooks = {name: given.pop(name, None) for name in ("preprocess", "postprocess")}
    return build_answer_processor(AnswerProcessorConfig(**given), **hooks)


def wanted(model: str) -> dict[int, tuple[Any, ...]]:
    """What each row should have, by id."""
    pairs = [(row["question"], row["context"]) for row in ROWS]
    made = Reader.from_pretrained(model).answer_many(pairs, threshold=1.0)
    return {
        row["id"]: (row["price"], each.answer, each.start, each.end)
        for row, (each,) in zip(ROWS, made, strict=True)
    }


def had(rows: list[dict[str, Any]]) -> dict[int, tuple[Any, ...]]:
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: (row["price"], row["answer"], row["start"], row["end"]) for row in rows}


def write_parts(folder: Path, rows_per_file: int) -> str:
    folder.mkdir()
    for first in range(0, len(TABLE), rows_per_file):
        pq.write_table(TABLE.slice(first, rows_per_file), folder / f"{first:03d}.parquet")
    return str(folder)


def test_parquet_goes_in_and_out_with_rows_made_before_and_after(tiny_bert: str, tmp_path: Path) -> None:
    import ray

    made = processor(
        tiny_bert,
        concurrency=(1, 2),
        question_column="asked",
        preprocess=lambda row: {"asked": row["question"].upper()},
        postprocess=lambda row: {**row, "loud": row["answer"] and row["answer"].upper()},
    )
    source = write_parts(tmp_path / "in", 8)
    made(ray.data.read_parquet(source)).write_parquet(str(tmp_path / "out"))
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["id"] for row in rows} == {row["id"] for row in ROWS}
    assert len(rows) == len(ROWS)
    reader = Reader.from_pretrained(tiny_bert)
    for row in rows:
        assert row["asked"] == row["question"].upper()
        ((best,),) = reader.answer_many([(row["asked"], row["context"])], threshold=1.0)
        assert (row["answer"], row["start"]) == (best.answer, best.start)
        assert row["loud"] == row["answer"].upper()


def test_dataset_without_the_columns_is_refused_before_anything_runs(tiny_bert: str) -> None:
    import ray

    given = ray.data.from_arrow(TABLE.rename_columns(["id", "question", "text", "price"]))
    with pytest.raises(InputError, match="the rows lack context; they have id, question, text, price"):
        processor(tiny_bert)(given)


def test_files_of_a_folder_are_read_beside_the_answering(tiny_bert: str) -> None:
    pytest.importorskip("pypdfium2", reason="needs the extra documents")
    import ray

    folder = Path(__file__).parents[1] / "documents" / "files"
    names = ("browser.pdf", "encrypted.pdf", "slides.pptx", "plain.txt")
    made = processor(
        tiny_bert,
        path_column="path",
        bytes_column="bytes",
        preprocess=lambda row: {"question": "Who opens the sluice?"},
    )
    files = ray.data.read_binary_files([str(folder / name) for name in names], include_paths=True)
    rows = {Path(row["path"]).name: row for row in made(files).take_all()}
    assert set(rows) == set(names)
    assert rows["encrypted.pdf"]["error"] == "the file is encrypted; save it without a password"
    for name in set(names) - {"encrypted.pdf"}:
        row = rows[name]
        assert row["context"][row["start"] : row["end"]] == row["answer"]
        assert (row["page"] is None) == (name == "plain.txt")
        assert (row["boxes"] is None) == (name != "browser.pdf")
    assert "bytes" not in rows["browser.pdf"]


@pytest.mark.slow
def test_sql_table_is_answered(tiny_bert: str, tmp_path: Path) -> None:
    import ray

    file = str(tmp_path / "rows.db")
    with sqlite3.connect(file) as base:
        base.execute("create table rows (id integer, question text, context text, price real)")
        base.executemany("insert into rows values (:id, :question, :context, :price)", ROWS)
    rows = processor(tiny_bert)(ray.data.read_sql("select * from rows", lambda: sqlite3.connect(file)))
    assert had(rows.take_all()) == wanted(tiny_bert)


@pytest.mark.slow
def test_iceberg_table_is_answered_into_another(tiny_bert: str, tmp_path: Path) -> None:
    pytest.importorskip("pyiceberg", reason="Iceberg is a dependency of the tests alone")
    import ray
    from pyiceberg.catalog import load_catalog

    keys = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": f"file://{tmp_path}/warehouse",
    }
    catalog = load_catalog("local", **keys)
    catalog.create_namespace("qa")
    catalog.create_table("qa.rows", TABLE.schema).append(TABLE)
    options = {"name": "local", **keys}
    made = processor(tiny_bert)(ray.data.read_iceberg(table_identifier="qa.rows", catalog_kwargs=options))
    table = made.materialize()
    schema = table.schema()
    catalog.create_table("qa.answers", pa.schema(list(zip(schema.names, schema.types, strict=True))))
    table.write_iceberg("qa.answers", catalog_kwargs=options)
    assert had(catalog.load_table("qa.answers").scan().to_arrow().to_pylist()) == wanted(tiny_bert)


@pytest.mark.slow
def test_lance_dataset_is_answered_into_another(tiny_bert: str, tmp_path: Path) -> None:
    lance = pytest.importorskip("lance", reason="Lance is a dependency of the tests alone")
    import ray

    lance.write_dataset(TABLE, str(tmp_path / "rows.lance"))
    made = processor(tiny_bert)(ray.data.read_lance(str(tmp_path / "rows.lance")))
    made.write_lance(str(tmp_path / "answers.lance"))
    assert had(lance.dataset(str(tmp_path / "answers.lance")).to_table().to_pylist()) == wanted(tiny_bert)


@pytest.mark.slow
def test_actor_that_dies_is_replaced_and_no_row_is_lost_or_doubled(tiny_bert: str, tmp_path: Path) -> None:
    import ray

    mark = tmp_path / "died"

    def die_once(row: dict[str, Any]) -> dict[str, Any]:
        if row["id"] == 13 and not mark.exists():
            mark.touch()
            os._exit(1)
        return row

    source = ray.data.read_parquet(write_parts(tmp_path / "in", 8))
    made = processor(tiny_bert, rows_per_batch=8, postprocess=die_once)(source)
    assert had(made.take_all()) == wanted(tiny_bert)
    assert mark.exists()


@pytest.mark.slow
def test_rays_own_checkpoint_resumes_where_one_row_gives_one_row(tiny_bert: str, tmp_path: Path) -> None:
    """With ids that survive the pipeline, files as sink, and the mode that appends."""
    import ray
    from ray.data import DataContext
    from ray.data.checkpoint import CheckpointConfig

    source, sink, fails = write_parts(tmp_path / "in", 4), tmp_path / "out", tmp_path / "fails"
    asked = tmp_path / "asked"
    asked.mkdir()
    sink.mkdir()
    fails.touch()

    def fail_late(row: dict[str, Any]) -> dict[str, Any]:
        (asked / f"{row['id']}-{fails.exists()}").touch()
        if row["id"] >= 16 and fails.exists():
            raise RuntimeError("the cluster went away")
        return row

    def run() -> None:
        context = DataContext.get_current()
        context.checkpoint_config = CheckpointConfig(
            id_column="id", checkpoint_path=str(tmp_path / "ids"), delete_checkpoint_on_success=False
        )
        context.execution_options.preserve_order = True
        context.use_datasource_v2 = False  # a block for each of these small files, so that some are written
        made = processor(tiny_bert, rows_per_batch=4, postprocess=fail_late)
        try:
            made(ray.data.read_parquet(source)).write_parquet(str(sink), mode="append")
        finally:
            context.execution_options.preserve_order = False
            context.use_datasource_v2 = True

    with pytest.raises(Exception, match="the cluster went away"):
        run()
    written = pq.read_table(sink).num_rows if list(sink.glob("*.parquet")) else 0
    assert 0 < written < len(ROWS)
    fails.unlink()
    run()
    rows = pq.read_table(sink).to_pylist()
    assert Counter(row["id"] for row in rows) == Counter(row["id"] for row in ROWS)
    assert had(rows) == wanted(tiny_bert)
    again = {int(path.name.partition("-")[0]) for path in asked.glob("*-False")}
    assert len(again) == len(ROWS) - written, "rows that were written are not answered again"
