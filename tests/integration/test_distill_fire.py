"""Whatever is killed while a student is trained, the run goes on to the weights of an undisturbed one.

Run as a script, this file trains on a cluster of its own that loses a node.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import fire
import pytest

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import storage
from tinyqa_ray.distill import distill
from tinyqa_ray.distill.checkpoints import newest_checkpoint, sealed
from tinyqa_ray.distill.metrics_log import read_rows
from tinyqa_ray.distill.shown import METRICS

RUNS = 5
STEPS = 200
CHECKPOINT_STEPS = 25
# Softmax cancels what these add to every token: their gradient is rounding alone, which AdamW scales up.
UNSEEN = ("qa_outputs.bias",)

needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster"), needs_proc]


@dataclass
class Moment:
    """What there was of a run when something was killed."""

    rows: list[dict[str, float]] = field(default_factory=list)
    checkpoint: int = 0
    """Step of the newest whole checkpoint."""

    def continued_in(self, output: Path) -> bool:
        """Whether the finished run kept the rows up to the checkpoint: made again, their speeds differ."""
        kept = [row for row in self.rows if row["step"] <= self.checkpoint]
        return bool(kept) and fire.rows(output)[: len(kept)] == kept


@pytest.fixture
def rng() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def config(ray_cluster: None, tiny_squad: str, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    made = fire.training(tmp_path_factory.mktemp("inputs"), tiny_squad, STEPS, dropout=0.1)
    return replace(made, checkpoint_steps=CHECKPOINT_STEPS)


@pytest.fixture(scope="module")
def calm(config: DistillConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What one worker and two train without Ray, undisturbed."""
    outputs = {workers: tmp_path_factory.mktemp("calm") for workers in (1, 2)}
    for workers, output in outputs.items():
        fire.trained_without_ray(replace(config, workers=workers), output)
    return outputs


class OverTooSoonError(Exception):
    """A run ended before this thread, on a busy machine, came to kill it: that says nothing of the run."""


def killed_in_time(folder: Path, run: Callable[[Path], Moment]) -> tuple[Path, Moment]:
    """The output and moment of the first run that was not over too soon."""
    for number in range(RUNS):
        output = folder / f"out-{number}"
        with contextlib.suppress(OverTooSoonError):
            return output, run(output)
    raise AssertionError(f"{RUNS} runs were over before anything was killed")


def checkpoint_step(output: Path) -> int:
    """The step of the newest whole checkpoint; 0 before there is one."""
    with contextlib.suppress(OSError):  # Ray deletes one while it is looked at
        for run in (output / "checkpoints").iterdir():
            if (newest := newest_checkpoint(str(run))) is not None:
                return int(sealed(Path(newest))["step"])
    return 0


@contextlib.contextmanager
def killed_midway(output: Path, rng: random.Random, kill: Callable[[], None]) -> Iterator[Moment]:
    """Call ``kill`` at a random step of the run in the block, once a checkpoint is whole."""
    # The second half is for a machine so busy that this thread wakes up late.
    at = rng.randrange(CHECKPOINT_STEPS, STEPS // 2)
    moment = Moment()
    trouble: list[BaseException] = []

    def ripe() -> bool:
        moment.rows = fire.rows(output)
        if not moment.rows or moment.rows[-1]["step"] < at:
            return False
        moment.checkpoint = checkpoint_step(output)
        return moment.checkpoint > 0

    def wait_and_kill() -> None:
        try:
            fire.wait_for(f"step {at} in {output}", ripe)
            kill()
            last = fire.rows(output)[-1]["step"]
            print(f"killed at step {last} (wanted {at}), with the checkpoint of step {moment.checkpoint}")
            if last == STEPS:
                raise OverTooSoonError("the run was over before anything was killed")
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    yield moment
    thread.join(fire.DEADLINE_S)
    assert not thread.is_alive()
    if trouble:
        raise trouble[0]


def command(config: DistillConfig, output: Path) -> list[str]:
    """The stage as a shell command."""
    found = ["-m", "tinyqa_ray", "distill", "--output", str(output)]
    for each in fields(config):
        value = getattr(config, each.name)
        if value != each.default and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            found += [f"--{each.name.replace('_', '-')}", *map(str, values)]
    return found


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_worker_changes_no_bit(
    workers: int, config: DistillConfig, calm: dict[int, Path], tmp_path: Path, rng: random.Random
) -> None:
    def run(output: Path) -> Moment:
        with killed_midway(output, rng, lambda: fire.kill_one(fire.is_train_worker, rng)) as moment:
            distill(replace(config, workers=workers), str(output))
        return moment

    output, moment = killed_in_time(tmp_path, run)
    assert moment.continued_in(output)
    assert fire.unlike(output / "model", calm[workers] / "model") == []
    assert fire.curve(output) == fire.curve(calm[workers])


@pytest.mark.slow
def test_killed_driver_changes_no_bit(
    config: DistillConfig, calm: dict[int, Path], tmp_path: Path, rng: random.Random
) -> None:
    output = tmp_path / "out"
    two = replace(config, workers=2)
    with fire.Driver(*command(two, output)) as driver:
        with killed_midway(output, rng, driver.process.kill) as moment:
            code, printed = driver.result()
        assert code == -signal.SIGKILL, printed
        # At once, while processes of the dead driver may still be writing.
        distill(two, str(output))
    assert moment.continued_in(output)
    assert fire.unlike(output / "model", calm[2] / "model") == []
    assert fire.curve(output) == fire.curve(calm[2])


@pytest.mark.slow
def test_machine_that_dies_and_tears_rays_list_loses_no_bit_and_no_student(
    config: DistillConfig, calm: dict[int, Path], tiny_squad: str, tmp_path: Path, rng: random.Random
) -> None:
    output = tmp_path / "out"
    measured = command(replace(config, dev=tiny_squad, keep_best=2, checkpoint_steps=50), output)
    with fire.Driver(*measured) as driver, killed_midway(output, rng, driver.kill_all) as moment:
        code, printed = driver.result()
    assert code == -signal.SIGKILL, printed
    (run,) = (output / "checkpoints").iterdir()
    (run / "checkpoint_manager_snapshot.json").write_text('{"ray_version": "2.')
    with fire.Driver(*measured) as driver:
        code, printed = driver.result()
    assert code == 0, printed
    assert moment.continued_in(output)
    assert fire.unlike(output / "model", calm[1] / "model") == []
    curve = fire.curve(output)
    assert curve == fire.curve(calm[1])
    assert all({"attention", "hidden", "prediction"} < row.keys() for row in curve)

    dev = [json.loads(file.read_text()) for file in sorted((output / "dev").glob("step-*.json"))]
    assert [row["step"] for row in dev] == list(range(50, STEPS + 1, 50))
    ranked = sorted(dev, key=lambda row: (-row["best_f1"], -row["step"]))
    best = sorted(f"step-{row['step']:09d}" for row in ranked[:2])
    assert sorted(folder.name for folder in (output / "best").iterdir()) == best
    for name in best:
        is_last = fire.unlike(output / "best" / name, calm[1] / "model") == []
        assert is_last == (name == f"step-{STEPS:09d}")


@pytest.mark.slow
def test_run_that_loses_a_node_goes_on_with_fewer_workers(tiny_squad: str, tmp_path: Path) -> None:
    config = fire.training(tmp_path, tiny_squad, STEPS, dropout=0.0)
    elastic = replace(config, checkpoint_steps=CHECKPOINT_STEPS, workers=2, min_workers=1)
    output = tmp_path / "out"
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    job = {"command": command(elastic, output)[3:], "nodes": 2, "seed": seed}
    with fire.Driver(__file__, json.dumps(job)) as driver:
        expected = fire.trained_without_ray(config, tmp_path / "calm")
        code, printed = driver.result()
        assert code == 0, printed
    fire.assert_close(output / "model", expected, but=UNSEEN)


@pytest.mark.slow
def test_run_of_two_workers_that_loses_one_of_four_nodes_changes_no_bit(
    config: DistillConfig, calm: dict[int, Path], tmp_path: Path, rng: random.Random
) -> None:
    output = tmp_path / "out"
    arguments = command(replace(config, workers=2), output)[3:]
    job = {"command": arguments, "nodes": 4, "seed": rng.randrange(2**32)}
    with fire.Driver(__file__, json.dumps(job)) as driver:
        code, printed = driver.result()
    assert code == 0, printed
    assert fire.unlike(output / "model", calm[2] / "model") == []
    assert fire.curve(output) == fire.curve(calm[2])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_from_a_store_on_two_nodes_that_all_die_changes_no_bit(
    config: DistillConfig, calm: dict[int, Path], bucket: str, tmp_path: Path, rng: random.Random
) -> None:
    """Windows, checkpoints and student lie on an S3 server; each node has a copy of the windows."""
    url = f"{bucket}/two-nodes-{rng.randrange(2**32)}"
    for file in storage.list_files(config.data, recursive=True):
        storage.write_atomic(f"{url}/windows{file[len(config.data) :]}", storage.read_bytes(file))
    output, node = f"{url}/out", tmp_path / "node"
    node.mkdir()
    stored = replace(config, data=f"{url}/windows", workers=2)
    job = json.dumps({"command": command(stored, Path("-"))[3:], "output": output})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(node)}

    def trains() -> bool:
        rows = read_rows(f"{output}/{METRICS}")
        found = [newest_checkpoint(folder) for folder in runs(output)] if rows else []
        return any(found) and rows[-1]["step"] < STEPS

    with fire.Driver(__file__, job, environment=environment) as driver:
        fire.wait_for("a checkpoint on the store", trains)
        copies = list(node.rglob("windows.arrow"))
        driver.kill_all()
        assert driver.result()[0] == -signal.SIGKILL
    assert len(copies) == 1, "the workers of a machine share a copy of the windows"
    assert list(node.rglob("windows.arrow")) == copies, "it waits for the run to go on"
    with fire.Driver(__file__, job, environment=environment) as driver:
        code, printed = driver.result()
    assert code == 0, printed
    assert list(node.rglob("windows.arrow")) == []
    for file in storage.list_files(f"{output}/model"):
        storage.write_atomic(str(tmp_path / "model" / file.rsplit("/", 1)[1]), storage.read_bytes(file))
    assert fire.unlike(tmp_path / "model", calm[2] / "model") == []
    timed = ("samples_per_s", "tokens_per_s")
    curve = [
        {name: row[name] for name in row if name not in timed} for row in read_rows(f"{output}/{METRICS}")
    ]
    assert curve == fire.curve(calm[2])


def runs(output: str) -> list[str]:
    """Where Ray keeps the checkpoints of a stage on a store."""
    folder = f"{output}/checkpoints"
    return [storage.join(folder, name) for name in storage.names_in(folder)]


def from_a_store(arguments: list[str], output: str) -> None:
    """Train with two workers on two nodes of one CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    distill(parsed(arguments), output)
    ray.shutdown()
    cluster.shutdown()


def parsed(arguments: list[str]) -> DistillConfig:
    """The config of a command whose ``--output`` is left out."""
    import tyro

    at = arguments.index("--output")
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
    return tyro.cli(DistillConfig, args=arguments[:at] + arguments[at + 2 :], config=flat)


def on_nodes(arguments: list[str], count: int, seed: int) -> None:
    """Train with two workers on so many nodes of one CPU; one that hosts a worker dies."""
    # A dead node is noticed after some three seconds, not fifteen; workers that find no room are given up
    # after five, not sixty.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "5"
    import ray
    from ray.cluster_utils import Cluster

    system = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1) for _ in range(count)]
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    output = Path(arguments[arguments.index("--output") + 1])
    config = parsed(arguments)
    rng = random.Random(seed)

    def trains(node: Any) -> bool:
        raylet = node.all_processes["raylet"][0].process.pid
        return any(fire.is_train_worker(process.line) for process in fire.descendants(raylet))

    def kill() -> None:
        hosts = [node for node in nodes if trains(node)]
        assert len(hosts) == 2
        cluster.remove_node(rng.choice(hosts), allow_graceful=False)

    with killed_midway(output, rng, kill) as moment:
        distill(config, str(output))
    assert moment.continued_in(output)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    job: dict[str, Any] = json.loads(sys.argv[1])
    if "nodes" in job:
        on_nodes(job["command"], job["nodes"], job["seed"])
    else:
        from_a_store(job["command"], job["output"])
