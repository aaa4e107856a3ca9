"""Whatever is killed while a pass writes, running it again gives the bytes of an undisturbed run."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from tinyqa_ray.augment.augmenter import Augmenter
from tinyqa_ray.core import shards
from tinyqa_ray.core.errors import InputError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
]

Commands = dict[str, list[str]]


@pytest.fixture(autouse=True, scope="module")
def _mappers_by_value() -> Iterator[None]:
    """Workers cannot import this file, so its mappers travel whole."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def commands(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    return fire.commands(tmp_path_factory.mktemp("data"), tiny_bert)


@pytest.fixture(scope="module")
def calm(ray_cluster: None, commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each pass, undisturbed."""
    outputs = {name: tmp_path_factory.mktemp("calm") / "out" for name in fire.PASSES}
    for name, output in outputs.items():
        fire.run(commands[name], output)
    return outputs


def test_undisturbed_pass_has_every_id_once(calm: dict[str, Path]) -> None:
    copies = pads.dataset(calm["augment"] / "paragraphs").to_table().to_pydict()
    sources = set(copies["source_id"])
    assert len(sources) == fire.PARAGRAPHS
    wanted = sorted([*sources, *(f"{source}~{number}" for source in sources for number in range(1, 11))])
    assert sorted(copies["paragraph_id"]) == wanted
    files = fire.shard_files("teacher-logits", calm["teacher-logits"])
    assert len(files) == fire.PARAGRAPHS
    tables = [pa.ipc.open_stream(pa.OSFile(str(file))).read_all() for file in files]
    windows = pa.concat_tables(tables).select(["window_id", "question_id"]).to_pydict()
    assert len(set(windows["window_id"])) == len(windows["window_id"])
    assert len(set(windows["question_id"])) == 3 * fire.PARAGRAPHS


@pytest.mark.parametrize(
    "victim", [fire.is_actor, pytest.param(fire.is_other_worker, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["augment", pytest.param("teacher-logits", marks=pytest.mark.slow)])
def test_killed_process_of_ray_changes_no_byte(
    name: str, victim: Any, commands: Commands, calm: dict[str, Path], tmp_path: Path, rng: random.Random
) -> None:
    output = tmp_path / "out"
    with fire.kill_midway(name, output, rng, lambda: fire.kill_one(victim, rng)):
        fire.run(commands[name], output)
    assert fire.differing(output, calm[name]) == []
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    fire.run(commands[name], output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == times


@pytest.mark.slow
def test_actor_killed_while_it_starts_changes_no_byte(
    commands: Commands, calm: dict[str, Path], tmp_path: Path, rng: random.Random
) -> None:
    def starting(line: str) -> bool:
        return fire.is_actor(line) and line.rstrip().endswith(".__init__")

    thread = threading.Thread(target=fire.kill_one, args=(starting, rng), daemon=True)
    thread.start()
    fire.run(commands["augment"], tmp_path / "out")
    assert not thread.is_alive(), "nothing was killed"
    assert fire.differing(tmp_path / "out", calm["augment"]) == []


@pytest.mark.parametrize("name", ["augment", pytest.param("teacher-logits", marks=pytest.mark.slow)])
def test_killed_driver_loses_nothing_and_the_next_goes_on(
    name: str,
    commands: Commands,
    calm: dict[str, Path],
    tmp_path: Path,
    rng: random.Random,
) -> None:
    output = tmp_path / "out"
    command = ["-m", "tinyqa_ray", *commands[name], "--output", str(output)]
    with fire.Driver(*command) as driver:
        with fire.kill_midway(name, output, rng, driver.process.kill):
            code, printed = driver.result()
        assert code == -signal.SIGKILL, printed
        # At once, while processes of the dead driver may still be writing.
        with fire.Driver(*command) as again:
            finished = {path: path.stat().st_mtime_ns for path in fire.shard_files(name, output)}
            code, printed = again.result()
            assert code == 0, printed
    assert finished
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert fire.differing(output, calm[name]) == []


@pytest.mark.slow
def test_second_run_in_a_folder_is_refused_and_spoils_nothing(
    commands: Commands, calm: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ["-m", "tinyqa_ray", *commands["augment"], "--output", str(output)]
    with fire.Driver(*command) as one:
        fire.wait_for("the first run", (output / "_STARTED.json").exists)
        one.process.send_signal(signal.SIGSTOP)  # it lives, and holds its folder
        with fire.Driver(*command) as other:
            code, printed = other.result()
        assert (code, "another run works in it" in printed) == (2, True), printed
        one.process.send_signal(signal.SIGCONT)
        code, printed = one.result()
    assert code == 0, printed
    assert fire.differing(output, calm["augment"]) == []


@pytest.mark.slow
def test_file_in_the_way_of_the_shards_is_one_line(
    commands: Commands, calm: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    shutil.copy(calm["augment"] / "_STARTED.json", output)
    (output / "paragraphs").touch()
    command = ["-m", "tinyqa_ray", *commands["augment"], "--output", str(output)]
    with fire.Driver(*command) as driver:
        code, printed = driver.result()
    assert code == 2
    lines = [line for line in printed.splitlines() if line]
    assert len(lines) == 1, printed
    assert lines[0].startswith(f"tinyqa: {output}/paragraphs: the folder cannot be made")
    (output / "paragraphs").unlink()
    fire.run(commands["augment"], output)
    assert fire.differing(output, calm["augment"]) == []


class DiskFull(Augmenter):
    """An augmenter on a disk that has room for few more files; the disk is that of its process alone."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        room = iter(range(5))
        sync = os.fsync

        def full(file: Any) -> None:
            if next(room, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            sync(file)

        os.fsync = full  # type: ignore[assignment]


@pytest.mark.slow
def test_full_disk_is_refused_and_finished_shards_stay(
    commands: Commands, calm: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("tinyqa_ray.augment.work.Augmenter", DiskFull)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            fire.run(commands["augment"], output)
    finished = {path: path.stat().st_mtime_ns for path in fire.shard_files("augment", output)}
    assert len(finished) == 5
    assert list(output.rglob("*.tmp")) == []

    fire.run(commands["augment"], output)
    assert fire.differing(output, calm["augment"]) == []
    assert {path: path.stat().st_mtime_ns for path in finished} == finished


class Poison:
    """Rows as they are, but number 3 kills its process whenever it comes."""

    def __call__(self, rows: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        if 3 in rows["number"].to_pylist():
            os.kill(os.getpid(), signal.SIGKILL)
        return rows, {}


@pytest.mark.slow
def test_shard_that_always_kills_its_process_is_given_up(tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.table({"number": list(range(6))}), source)
    plan = shards.cut([str(source)], 1, str(tmp_path / "out"), "parquet")
    with pytest.raises(InputError, match=r"part-000003.parquet: its process was killed 5 times"):
        shards.run(plan, Poison, {}, shards.Workers())
    assert not (tmp_path / "out" / "part-000003.parquet").exists()
