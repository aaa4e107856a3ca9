from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core import said, shards
from tinyqa_ray.core.errors import InputError


class Doubler:
    """Each number in, itself and its double out; refuses to go on at ``stop``."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        numbers = rows["number"].to_pylist()
        if self.stop in numbers:
            raise RuntimeError(f"number {self.stop}")
        made = [value for number in numbers for value in (number, 2 * number)]
        return pa.table({"value": made}), {"rows": len(numbers), "total": sum(made)}


def write_numbers(path: Path, count: int, first: int = 0) -> str:
    pq.write_table(pa.table({"number": list(range(first, first + count))}), path)
    return str(path)


def read(file: str) -> list[int]:
    if file.endswith(".parquet"):
        return list(pq.read_table(file)["value"].to_pylist())
    return list(pa.ipc.open_stream(pa.OSFile(file)).read_all()["value"].to_pylist())


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 9), max_size=4), rows_per_shard=st.integers(1, 5))
def test_shards_cover_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    files = [write_numbers(folder / f"{i}.parquet", size) for i, size in enumerate(sizes)]
    plan = shards.cut(files, rows_per_shard, "out", "arrow")
    covered = [(shard.source, shard.offset + row) for shard in plan for row in range(shard.rows)]
    assert covered == [(file, row) for file, size in zip(files, sizes, strict=True) for row in range(size)]
    assert all(1 <= shard.rows <= rows_per_shard for shard in plan)
    assert [shard.index for shard in plan] == list(range(len(plan)))


class Keeper:
    """Rows out as they came in."""

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        return pa.table({"value": rows["number"]}), {}


@settings(deadline=None, max_examples=30)
@given(
    count=st.integers(1, 40),
    group=st.integers(1, 12),
    rows_per_shard=st.integers(1, 15),
)
def test_shards_read_their_rows_whatever_the_row_groups(
    tmp_path_factory: pytest.TempPathFactory, count: int, group: int, rows_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("groups")
    file = str(folder / "in.parquet")
    pq.write_table(pa.table({"number": list(range(count))}), file, row_group_size=group)
    found: list[int] = []
    for shard in shards.cut([file], rows_per_shard, str(folder / "out"), "parquet"):
        shards.work(shard, Keeper())
        found += read(shard.target)
    assert found == list(range(count))


def test_shard_reads_only_the_row_groups_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 4)
    file = str(tmp_path / "in.parquet")
    shards.write_input(file, pa.table({"number": list(range(40))}))
    asked: list[list[int]] = []
    original = pq.ParquetFile.read_row_groups

    def watched(self: Any, groups: list[int], *rest: Any, **options: Any) -> Any:
        asked.append(groups)
        return original(self, groups, *rest, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", watched)
    plan = shards.cut([file], 6, str(tmp_path / "out"), "arrow")
    for shard in plan[:3]:
        shards.work(shard, Doubler())
    assert asked == [[0, 1], [1, 2], [3, 4]]


def test_target_is_named_by_the_shard_alone(tmp_path: Path) -> None:
    file = write_numbers(tmp_path / "in.parquet", 5)
    plan = shards.cut([file], 2, "s3://bucket/out", "parquet")
    assert [shard.target for shard in plan] == [f"s3://bucket/out/part-00000{i}.parquet" for i in range(3)]


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_work_maps_its_slice_only(tmp_path: Path, file_format: shards.Format) -> None:
    file = write_numbers(tmp_path / "in.parquet", 5)
    plan = shards.cut([file], 2, str(tmp_path / "out"), file_format)
    shards.work(plan[1], Doubler())
    assert read(plan[1].target) == [2, 4, 3, 6]
    assert [Path(plan[1].target)] == list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_same_rows_give_the_same_bytes(tmp_path: Path, file_format: shards.Format) -> None:
    file = write_numbers(tmp_path / "in.parquet", 3)
    made = []
    for name in ("a", "b"):
        (shard,) = shards.cut([file], 8, str(tmp_path / name), file_format)
        shards.work(shard, Doubler())
        made.append(Path(shard.target).read_bytes())
    assert made[0] == made[1]


def test_mapper_that_fails_leaves_no_file(tmp_path: Path) -> None:
    file = write_numbers(tmp_path / "in.parquet", 3)
    (shard,) = shards.cut([file], 8, str(tmp_path / "out"), "parquet")
    with pytest.raises(RuntimeError, match="number 1"):
        shards.work(shard, Doubler(stop=1))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_counts_of_finished_shards_add_up_without_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_format: shards.Format
) -> None:
    files = [write_numbers(tmp_path / "a.parquet", 3), write_numbers(tmp_path / "b.parquet", 2, first=3)]
    plan = shards.cut(files, 2, str(tmp_path / "out"), file_format)
    for shard in plan:
        shards.work(shard, Doubler())

    def refuse(*_: Any) -> Any:
        raise AssertionError("finished shards were worked again")

    monkeypatch.setattr(shards, "_worked", refuse)
    seen: list[tuple[int, int]] = []
    counts = shards.run(plan, Doubler, {}, shards.Workers(), lambda done, total: seen.append((done, total)))
    assert counts == {"rows": 5, "total": 30}
    assert seen == [(5, 5)]


def test_pass_over_no_rows_has_no_counts(tmp_path: Path) -> None:
    file = write_numbers(tmp_path / "in.parquet", 0)
    plan = shards.cut([file], 2, str(tmp_path / "out"), "parquet")
    assert plan == []
    assert shards.run(plan, Doubler, {}, shards.Workers()) == {}


def test_tries_of_a_shard_are_counted_until_the_pass_is_stopped() -> None:
    tries = shards._Tries()
    assert [tries.begin(index) for index in (3, 4, 3, 3)] == [0, 0, 1, 2]
    tries.stop()
    assert [tries.begin(index) for index in (3, 5)] == [None, None]


class Cards:
    """A mapper with a card that its threads share in turns; it notes what happens when."""

    side_by_side = True
    events: ClassVar[list[str]] = []
    tokenised: ClassVar[threading.Semaphore] = threading.Semaphore(0)

    def __init__(self) -> None:
        self.events.append("made")
        self.card = threading.Lock()

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        name = rows["id"][0].as_py()
        self.events.append(f"tokenised {name}")
        self.tokenised.release()
        with self.card:
            self.events.append(f"runs {name}")
            # As long as the other shard is not tokenised, the card is busy with this one.
            assert self.tokenised.acquire(timeout=30)
            assert self.tokenised.acquire(timeout=30)
            self.tokenised.release(2)
            self.events.append(f"ran {name}")
        return rows, {}


class NoTries:
    """Counts of tries, in this process."""

    def __init__(self) -> None:
        self.begin = self.stop = self

    def remote(self, *_: Any) -> int:
        return 0


class Warner:
    """A mapper that warns when it is made and of each row, and refuses the last."""

    def __init__(self) -> None:
        said.say_once("made with care")

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        name = rows["id"][0].as_py()
        logging.getLogger("tinyqa_ray.engines.memory").warning("%s is\nlarge", name)
        logging.getLogger("tinyqa_ray.engines.memory").info("%s is read", name)
        if name == "b":
            raise InputError("b is not allowed")
        return rows, {}


def test_what_an_actor_warns_of_comes_with_the_shard_and_so_does_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    said.say_once.cache_clear()
    worker, batches = two_shards(tmp_path, Warner)
    replies = [*map(worker, batches)]
    assert [reply["notes"][0].splitlines() for reply in replies] == [
        ["made with care", "a is large"],
        ["b is large"],
    ]
    assert replies[1]["refused"][0] == "b is not allowed"


def test_actor_on_a_node_that_does_not_see_the_folder_makes_no_mapper_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    said.say_once.cache_clear()
    worker, batches = two_shards(tmp_path, Warner, None, str(tmp_path / "probe"))
    replies = [*map(worker, batches)]
    for reply in replies:
        assert str(reply["refused"][0]).startswith(f"{tmp_path}: is not seen by the node ")
        assert reply["notes"][0] == ""
    assert not (tmp_path / "out").exists()
    (tmp_path / "probe").touch()
    assert worker(batches[0])["refused"][0] == ""


def two_shards(
    folder: Path, mapper: Any, *probes: str | None
) -> tuple[shards._ShardWorker, list[dict[str, Any]]]:
    """An actor, and what it is given for each of two shards."""
    shards.write_input(str(folder / "in.parquet"), pa.table({"id": ["a", "b"]}))
    plan = shards.cut([str(folder / "in.parquet")], 1, str(folder / "out"), "parquet")
    batches = [
        {name: np.array([value], dtype=object) for name, value in {**asdict(each), "units": 1}.items()}
        for each in plan
    ]
    return shards._ShardWorker(mapper, {}, NoTries(), probes), batches


def test_actor_with_a_gpu_tokenises_a_shard_while_another_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "get", lambda value: value)
    worker, batches = two_shards(tmp_path, Cards)
    with ThreadPoolExecutor(2) as threads:
        replies = list(threads.map(worker, batches))
    assert [reply["refused"][0] for reply in replies] == ["", ""]
    events = Cards.events
    assert events[0] == "made"
    assert events.count("made") == 1
    first_ran = next(place for place, event in enumerate(events) if event.startswith("ran"))
    assert {"tokenised a", "tokenised b"} <= set(events[:first_ran])
    assert len([*(tmp_path / "out").iterdir()]) == 2


@pytest.mark.parametrize(
    ("num_gpus", "mapper", "calls"), [(1.0, Cards, 2), (0.0, Cards, 1), (1.0, NoTries, 1)]
)
def test_only_actors_with_a_gpu_work_on_two_shards_and_only_if_their_mapper_may(
    num_gpus: float, mapper: Any, calls: int
) -> None:
    options = shards.calls_at_once(mapper, shards.Workers(num_gpus=num_gpus))
    assert options["max_concurrent_calls_per_actor"] == calls
    assert options["enable_true_multi_threading"] == (calls == 2)
    assert options["max_tasks_in_flight_per_actor"] == calls + 1
