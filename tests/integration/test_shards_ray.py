from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from tinyqa_ray.core import said, shards
from tinyqa_ray.core.cluster import cores, cpus_per_actor
from tinyqa_ray.core.errors import InputError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ROWS = 10


@pytest.fixture(autouse=True, scope="module")
def _mapper_by_value() -> Iterator[None]:
    """Workers cannot import this file, so its mapper travels whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Repeater:
    """Each number as often as it says; may kill its own process, or refuse, at a number."""

    def __init__(
        self,
        kill_at: int | None = None,
        marker: str = "",
        refuse_at: int | None = None,
        refuse_start: bool = False,
    ) -> None:
        if refuse_start:
            raise InputError("the mapper cannot start; mend it")
        self.kill_at, self.marker, self.refuse_at = kill_at, marker, refuse_at

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        numbers = rows["number"].to_pylist()
        if self.refuse_at in numbers:
            raise InputError(f"number {self.refuse_at} is not allowed")
        if self.kill_at in numbers and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        made = [number for number in numbers for _ in range(number)]
        return pa.table({"value": pa.array(made, pa.int64())}), {"made": len(made)}


def plan(folder: Path, name: str) -> list[shards.Shard]:
    source = folder / "in.parquet"
    pq.write_table(pa.table({"number": list(range(ROWS))}), source)
    return shards.cut([str(source)], 2, str(folder / name), "parquet")


def run(todo: list[shards.Shard], actors: int = 1, **options: Any) -> dict[str, float]:
    return shards.run(todo, Repeater, options, shards.Workers(actors=actors))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_actor_and_any_number_of_actors_give_the_same_files(tmp_path: Path) -> None:
    counts = run(plan(tmp_path, "calm"))
    calm = contents(tmp_path / "calm")
    assert counts == {"made": sum(range(ROWS))}
    assert list(calm) == [f"part-00000{i}.parquet" for i in range(ROWS // 2)]

    marker = tmp_path / "killed"
    assert run(plan(tmp_path, "killed-run"), kill_at=5, marker=str(marker)) == counts
    assert marker.exists()
    assert contents(tmp_path / "killed-run") == calm

    assert run(plan(tmp_path, "two"), actors=2) == counts
    assert contents(tmp_path / "two") == calm


def test_killed_count_of_tries_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "killed"

    class Dying(shards._Tries):
        def begin(self, index: int) -> int | None:
            if index == 2 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().begin(index)

    monkeypatch.setattr(shards, "_Tries", Dying)
    assert run(plan(tmp_path, "out")) == {"made": sum(range(ROWS))}
    assert marker.exists()


def test_run_again_works_only_the_missing_shard(tmp_path: Path) -> None:
    todo = plan(tmp_path, "out")
    run(todo)
    before = contents(tmp_path / "out")
    times = {shard.target: Path(shard.target).stat().st_mtime_ns for shard in todo}
    seen: list[tuple[int, int]] = []
    Path(todo[3].target).unlink()
    shards.run(todo, Repeater, {}, shards.Workers(), lambda done, total: seen.append((done, total)))
    assert seen == [(ROWS - 2, ROWS), (ROWS, ROWS)]
    changed = [shard.index for shard in todo if Path(shard.target).stat().st_mtime_ns != times[shard.target]]
    assert changed == [3]
    assert contents(tmp_path / "out") == before
    # Nothing is left to do: not even a mapper that would refuse is made.
    run(todo, refuse_start=True)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"refuse_at": 4}, r"^number 4 is not allowed$"),
        ({"refuse_start": True}, r"^the mapper cannot start; mend it$"),
    ],
)
def test_refusal_of_a_mapper_reaches_the_caller(
    tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        run(plan(tmp_path, "out"), **options)


class Warner:
    """Warns of the same at every shard, and of its first number."""

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        said.say_once("logits overflow in half precision")
        said.say_once(f"{rows['number'][0].as_py()} is large")
        return rows, {}


def test_what_actors_warn_of_is_said_once_by_the_driver(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said.say_once.cache_clear()
    shards.run(plan(tmp_path, "out"), Warner, {}, shards.Workers(actors=2))
    told = [record.message for record in caplog.records if record.name.startswith("tinyqa_ray")]
    large = [f"{number} is large" for number in range(0, ROWS, 2)]
    assert sorted(told) == [*large, "logits overflow in half precision"]


def test_actor_that_does_not_see_the_folder_ends_the_pass_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that joins once the pass runs; here all nodes have one disk, so the probe is elsewhere."""
    todo = plan(tmp_path, "out")

    @contextmanager
    def elsewhere(output: str) -> Iterator[str]:
        yield f"{output}/no-probe"

    with monkeypatch.context() as patch:
        patch.setattr(shards, "probed", elsewhere)
        with pytest.raises(InputError, match=r"^.*out: is not seen by the node .*mounted folder$"):
            run(todo)
    assert not (tmp_path / "out").exists()
    assert run(todo) == {"made": sum(range(ROWS))}
    assert len(contents(tmp_path / "out")) == ROWS // 2, "no probe stays"


class Teller:
    """Tells, in place of a table, what its actor was given and how many threads it would have."""

    def __init__(self, actors: int) -> None:
        self.actors = actors

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        import ray

        cpus = ray.get_runtime_context().get_assigned_resources()["CPU"]
        return rows, {"shards": 1, "cpus": cpus, "threads": cores(self.actors)}


@pytest.mark.parametrize("actors", [1, 4])
def test_ray_is_told_what_actors_compute_on_and_keeps_a_cpu(tmp_path: Path, actors: int) -> None:
    """Any number of them ends, also on two cores."""
    import ray

    todo = plan(tmp_path, "out")
    told = shards.run(todo, Teller, {"actors": actors}, shards.Workers(actors=actors))
    cpus = told["cpus"] / told["shards"]
    assert cpus == pytest.approx(cpus_per_actor(actors), abs=1e-3)
    assert actors * cpus <= ray.cluster_resources()["CPU"] - 1
    assert told["threads"] / told["shards"] == cores(actors)
