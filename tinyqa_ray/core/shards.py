"""Exact passes over tables on Ray Data: every shard is written exactly once, even if processes are killed.

A pass is a list of shards: each has a slice of an input Parquet file and one output file. A Ray Data actor
reads the slice, maps it, and writes the file atomically, under a name that depends on the shard alone. A pass
that is run again works on the shards whose files are missing. A shard's bytes depend only on its rows, so an
interrupted run, a retry and any number of actors give the same folder. Rows do not pass through Ray's object
store, so memory is bounded by the size of a shard. (Ray Data's own checkpoints commit by row id per write
block and need one output row per input row; these passes make many.)
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from tinyqa_ray.core import faults, storage
from tinyqa_ray.core.cluster import cpus_per_actor
from tinyqa_ray.core.errors import InputError, StoreError
from tinyqa_ray.core.said import heard, say_once
from tinyqa_ray.core.shared_folder import check_seen, probed

Format = Literal["parquet", "arrow"]
Progress = Callable[[int, int], None]
"""Called with the rows done and the total number of rows."""

ROWS_PER_GROUP = 64
"""Rows in a Parquet row group; at either end, a shard reads at most one group's rows too many."""
TRIES = 5
"""How often a shard is begun if its process is killed each time."""
_MOST_BLOCKS = 4096
"""Most blocks in the data set of shards, since Ray keeps a record of each block."""
_READERS = 16
_COUNTS = b"tinyqa"
"""Key of a shard's counts in the metadata of its file's schema."""


class Mapper(Protocol):
    """What an actor does to a shard; each actor makes one, in its own process.

    One whose class says ``side_by_side`` may be called in two threads at once. An actor with a GPU then works
    on two shards: one is read, tokenised or written while the other computes, so that the card idles for
    none of it.
    """

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Map the rows of a shard; also return counts that add up over shards."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows ``offset : offset + rows`` of an input file, and the output file made from them."""

    index: int
    source: str
    offset: int
    rows: int
    target: str
    units: int | None = None
    """What the shard adds to the progress; its rows if None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """How many actors work on a pass, and what each of them may use."""

    actors: int = 1
    num_gpus: float = 0.0
    threads: int = 0
    """Torch threads of an actor; 0 means its share of the node's cores."""


def cut(files: Sequence[str], rows_per_shard: int, output: str, file_format: Format) -> list[Shard]:
    """Cut Parquet files into shards of at most ``rows_per_shard`` rows, in order."""
    shards: list[Shard] = []
    for file in files:
        rows = _rows(file)
        for offset in range(0, rows, rows_per_shard):
            name = f"part-{len(shards):06d}.{file_format}"
            count = min(rows_per_shard, rows - offset)
            shards.append(Shard(len(shards), file, offset, count, storage.join(output, name)))
    return shards


def run(
    shards: Sequence[Shard],
    mapper: Callable[..., Mapper],
    options: dict[str, Any],
    workers: Workers,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Work on the shards whose files are missing, and return the counts summed over all shards.

    Args:
        shards: the pass, as made by ``cut``.
        mapper: class of the mapper; each actor makes one from ``options``.
        options: constructor arguments, small enough to send to every actor.
        workers: actors and their share of the cluster.
        progress: called as shards finish, with rows or, if the shards have them, ``units``.

    Raises:
        InputError: a mapper refused its rows, a file cannot be read or written, or a shard's process was
            killed each time, or a node does not see the folder of the shards.
        StoreError: a store did not serve for so long that the pass was stopped; run it again later.
    """
    folders = {shard.target.rsplit("/", 1)[0] for shard in shards}
    # If a file is where the folder should be, writing to it is refused later.
    written = {
        file for folder in folders if storage.kind(folder) == "folder" for file in storage.list_files(folder)
    }
    todo = [shard for shard in shards if shard.target not in written]
    total = sum(map(_units, shards))
    done = total - sum(map(_units, todo))
    if progress:
        progress(done, total)
    if todo:
        for units in _worked(todo, mapper, options, workers):
            done += units
            if progress:
                progress(done, total)
    counts: dict[str, float] = {}
    with ThreadPoolExecutor(_READERS) as pool:  # a store behind a URL is slow for each single file
        for found in pool.map(_read_counts, [shard.target for shard in shards]):
            for name, value in found.items():
                counts[name] = counts.get(name, 0) + value
    return counts


def _units(shard: Shard) -> int:
    return shard.rows if shard.units is None else shard.units


def _worked(
    todo: Sequence[Shard], mapper: Callable[..., Mapper], options: dict[str, Any], workers: Workers
) -> Any:
    """Yield the units of each shard as Ray Data's actors finish it, and say once what they warned of."""
    import ray
    from ray.data import ActorPoolStrategy
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folders = sorted({shard.target.rsplit("/", 1)[0] for shard in todo})
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(probed(folder)) for folder in folders]
        # It runs on the driver's node: if that node dies, the driver dies too.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        lasting = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        tries = ray.remote(_Tries).options(**lasting).remote()
        items = [{**asdict(shard), "units": _units(shard)} for shard in todo]
        dataset = ray.data.from_items(items, override_num_blocks=min(len(todo), _MOST_BLOCKS))
        worked = dataset.map_batches(
            _ShardWorker,
            fn_constructor_kwargs={"mapper": mapper, "options": options, "tries": tries, "probes": probes},
            batch_size=1,
            compute=ActorPoolStrategy(size=min(workers.actors, len(todo)), **calls_at_once(mapper, workers)),
            num_cpus=cpus_per_actor(workers.actors, workers.num_gpus, workers.threads),
            num_gpus=workers.num_gpus,
        )
        refused, is_mistake = "", True
        try:
            # Iterate to the end even after a refusal: actors skip what is left, and none is killed at work.
            for row in worked.iter_rows():
                for note in row["notes"].splitlines():
                    say_once(note)
                if row["refused"] and not refused:
                    refused, is_mistake = row["refused"], row["is_mistake"]
                if not refused:
                    yield row["units"]
        finally:
            ray.kill(tries)
    if refused:
        raise InputError(refused) if is_mistake else StoreError(refused)


def calls_at_once(mapper: Callable[..., Mapper], workers: Workers) -> dict[str, Any]:
    """Options of ``ActorPoolStrategy``: how many shards an actor works on, and how many it has at hand."""
    calls = 2 if workers.num_gpus and getattr(mapper, "side_by_side", False) else 1
    return {
        "max_concurrent_calls_per_actor": calls,
        "enable_true_multi_threading": calls > 1,
        # One shard waits at each actor; more would wait behind a long one while others are idle.
        "max_tasks_in_flight_per_actor": calls + 1,
    }


class _Tries:
    """Counts how often each shard of a pass was begun, in an actor that outlives those that are killed."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()
        self.stopped = False

    def begin(self, index: int) -> int | None:
        """Count a try of a shard; return the number of earlier tries, or None if the pass was stopped."""
        if self.stopped:
            return None
        self.begun[index] += 1
        return self.begun[index] - 1

    def stop(self) -> None:
        """Stop the pass: no further shard is begun."""
        self.stopped = True


class _ShardWorker:
    """The Ray Data actor: it makes its mapper at the first shard, and works on one shard in each thread."""

    def __init__(
        self,
        mapper: Callable[..., Mapper],
        options: dict[str, Any],
        tries: Any,
        probes: Sequence[str | None],
    ) -> None:
        def make() -> Mapper:
            for probe in probes:
                check_seen(probe)
            return mapper(**options)

        self._make = functools.cache(make)
        self._making = threading.Lock()
        self.tries = tries

    def make(self) -> Mapper:
        """The mapper; made once, whichever thread asks first.

        Raises:
            InputError: this node does not see the folder of the shards, or what the mapper refuses.
        """
        with self._making:
            return self._make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        import ray

        # A batch has one row.
        index, offset, rows = (int(batch[name][0]) for name in ("index", "offset", "rows"))
        shard = Shard(index, str(batch["source"][0]), offset, rows, str(batch["target"][0]))
        refused, is_mistake = "", True
        before = ray.get(self.tries.begin.remote(index))
        with heard() as notes:
            try:
                if before is not None:
                    _give_up_late(shard, before)
                    work(shard, self.make())
            except (InputError, StoreError, OSError) as error:
                # Returned as data: Ray would wrap an exception, and lose its cause on the way to the driver.
                told = faults.refused(shard.target, error, str(error))
                refused, is_mistake = str(told), isinstance(told, InputError)
                ray.get(self.tries.stop.remote())
        return {
            "units": batch["units"],
            "notes": np.array(["\n".join(notes)], dtype=object),
            "refused": np.array([refused], dtype=object),
            "is_mistake": np.array([is_mistake]),
        }


def _give_up_late(shard: Shard, tries: int) -> None:
    """Refuse a shard after ``TRIES`` tries: Ray would retry a shard that kills its process forever."""
    if tries >= TRIES:
        raise InputError(
            f"{shard.target}: its process was killed {TRIES} times, perhaps because memory ran out; run "
            "again with fewer --actors, or into another --output with a smaller --rows-per-shard"
        )


def work(shard: Shard, mapper: Mapper) -> None:
    """Read a shard's rows, map them, and write its file atomically."""
    made, counts = mapper(_rows_of(shard))
    made = made.replace_schema_metadata({_COUNTS: json.dumps(counts, sort_keys=True)})
    sink = io.BytesIO()
    if shard.target.endswith(".parquet"):
        pq.write_table(made, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    else:
        with pa.ipc.new_stream(sink, made.schema) as writer:
            writer.write_table(made)
    storage.write_atomic(shard.target, sink.getvalue())


def _rows_of(shard: Shard) -> pa.Table:
    """The rows of a shard; only the row groups that hold them are read."""
    filesystem, inner = storage.resolve(shard.source)
    with filesystem.open_input_file(inner) as source:
        file = pq.ParquetFile(source)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        first = int(np.searchsorted(ends, shard.offset, side="right"))
        last = int(np.searchsorted(ends, shard.offset + shard.rows, side="left"))
        before = int(ends[first] - sizes[first])
        rows = file.read_row_groups(list(range(first, last + 1)))
    return rows.slice(shard.offset - before, shard.rows)


def write_input(path: str, table: pa.Table) -> None:
    """Write the input of a pass as Parquet, in small row groups, so that a shard reads only its part."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
    storage.write_atomic(path, sink.getvalue().to_pybytes())


def _read_counts(file: str) -> dict[str, float]:
    filesystem, inner = storage.resolve(file)
    with filesystem.open_input_file(inner) as source:
        schema = pq.read_schema(source) if file.endswith(".parquet") else pa.ipc.open_stream(source).schema
    counts: dict[str, float] = json.loads(schema.metadata[_COUNTS])
    return counts


def _rows(file: str) -> int:
    filesystem, inner = storage.resolve(file)
    with filesystem.open_input_file(inner) as source:
        return int(pq.read_metadata(source).num_rows)
