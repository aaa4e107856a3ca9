"""Four logical nodes, one of them killed or none, write the bytes of a single one.

Run as a script, this file is the driver: a cluster would disturb the Ray that the other tests share.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from pathlib import Path
from typing import Any

import fire
import pytest

NODES = 4


def main(folder: Path, commands: dict[str, list[str]], seed: int) -> None:
    """Run each pass on a cluster, undisturbed and then with a node killed."""
    import ray
    from ray.cluster_utils import Cluster

    rng = random.Random(seed)
    # A dead node is noticed after some three seconds, not fifteen.
    system = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    # The head holds the driver alone, so that any other node may be killed.
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": system}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)

    def hosts() -> list[Any]:
        """The nodes on which an actor runs."""
        raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
        return [
            node
            for raylet, node in raylets.items()
            if any(fire.is_actor(process.line) for process in fire.descendants(raylet))
        ]

    def kill() -> None:
        found = fire.wait_for("a node with an actor", hosts)
        node = rng.choice(sorted(found, key=lambda node: str(node.node_id)))
        cluster.remove_node(node, allow_graceful=False)

    for name, command in commands.items():
        fire.run([*command, "--actors", str(NODES)], folder / f"four-{name}")
        actors = ray._private.state.actors().values()
        used = {each["Address"]["NodeID"] for each in actors if "_ShardWorker" in each["ActorClassName"]}
        assert len(used) > 1, f"{name} ran on one node only"
        killed = folder / f"killed-{name}"
        with fire.kill_midway(name, killed, rng, kill):
            fire.run([*command, "--actors", "2"], killed)
        assert len(cluster.worker_nodes) == NODES - 1
        cluster.add_node(num_cpus=1)
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_four_nodes_and_a_killed_one_write_the_bytes_of_one(tiny_bert: str, tmp_path: Path) -> None:
    commands = fire.commands(tmp_path, tiny_bert)
    job = {"folder": str(tmp_path), "commands": commands, "seed": random.SystemRandom().randrange(2**32)}
    print(f"seed {job['seed']}")
    with fire.Driver(__file__, json.dumps(job)) as driver:
        for name, command in commands.items():
            fire.run(command, tmp_path / f"one-{name}")
        code, printed = driver.result()
        assert code == 0, printed
    for name in commands:
        for other in ("four", "killed"):
            assert fire.differing(tmp_path / f"{other}-{name}", tmp_path / f"one-{name}") == []


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    main(Path(job["folder"]), job["commands"], job["seed"])
