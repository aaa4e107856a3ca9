from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from tinyqa_ray.core import cluster
from tinyqa_ray.core.cluster import Room, connected, cores, cpus_per_actor, largest_share


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``ray.init`` was called with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_without_an_address_a_ray_of_its_own_is_started_whoever_else_has_one(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected():
        (options,) = started
    assert options["address"] == "local"


@pytest.mark.parametrize(("usable", "wanted"), [(1, 4), (2, 4), (3, 4), (8, 9)])
def test_ray_of_its_own_has_a_cpu_beside_the_cores(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, usable: int, wanted: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "usable_cores", lambda: usable)
    with connected():
        (options,) = started
    assert options["num_cpus"] == wanted


def test_with_an_address_that_cluster_is_joined_as_it_is(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with connected():
        (options,) = started
    assert not options.keys() & {"address", "num_cpus"}


class Nodes:
    """A cluster as Ray tells of it, without one; the driver is on the first node."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float], usable: int = 64
    ) -> None:
        self.resources = resources
        self.idle = sum(each.get("CPU", 0.0) for each in resources)
        self.slept_s = 0.0
        self.actor: tuple[int, dict[str, float]] | None = None
        """Node of the process and what it was assigned, None for the driver."""
        monkeypatch.setattr(cluster, "usable_cores", lambda: usable)
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": self.idle})
        monkeypatch.setattr(ray, "get_runtime_context", self.context)
        clock = SimpleNamespace(monotonic=lambda: self.slept_s, sleep=self.sleep)
        monkeypatch.setattr(cluster, "time", clock)

    def nodes(self) -> list[dict[str, Any]]:
        alive = [
            {"NodeID": str(i), "Alive": True, "Resources": each} for i, each in enumerate(self.resources)
        ]
        return [*alive, {"NodeID": "dead", "Alive": False, "Resources": {"CPU": 96.0, "GPU": 8.0}}]

    def context(self) -> Any:
        node, assigned = self.actor or (0, {})
        return SimpleNamespace(
            get_node_id=lambda: str(node),
            get_actor_id=lambda: "a" if self.actor else None,
            get_assigned_resources=lambda: assigned,
        )

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


HEAD = {"object_store_memory": 1e9}
"""A head that works nothing."""
EIGHT = {"CPU": 8.0, "memory": 1e9}
V100 = {"CPU": 8.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("resources", "usable", "actors", "wanted"),
    [
        # A local Ray on two cores has four CPUs: every core is for actors.
        ([{"CPU": 4.0}], 2, 1, (2, 2)),
        ([{"CPU": 4.0}], 2, 2, (1, 1)),
        ([{"CPU": 4.0}], 2, 4, (0.5, 1)),
        ([{"CPU": 9.0}], 8, 1, (8, 8)),
        ([{"CPU": 9.0}], 8, 3, (2.6666, 2)),
        # On a cluster Ray has as many as there are cores, and one stays free for the tasks that feed actors.
        ([EIGHT], 8, 1, (7, 8)),
        ([EIGHT], 8, 2, (3.5, 4)),
        ([EIGHT], 8, 16, (0.4375, 1)),
        ([HEAD, EIGHT, EIGHT, EIGHT, EIGHT], 8, 4, (7, 8)),
        ([HEAD, EIGHT, EIGHT, EIGHT, EIGHT], 8, 3, (7, 8)),
        ([HEAD, EIGHT, EIGHT, EIGHT, EIGHT], 8, 8, (3.5, 4)),
        ([HEAD, EIGHT, EIGHT, EIGHT, EIGHT], 8, 16, (1.75, 2)),
        ([HEAD, {"CPU": 1.0}, {"CPU": 1.0}], 1, 2, (0.5, 1)),
        ([HEAD, {"CPU": 2.0}, {"CPU": 2.0}], 2, 1, (1, 2)),
        # No node yet: an autoscaler starts one for what is asked for.
        ([HEAD], 8, 4, (1, 2)),
    ],
)
def test_actor_asks_for_its_share_of_a_node_and_computes_on_as_many_cores(
    monkeypatch: pytest.MonkeyPatch,
    resources: list[dict[str, float]],
    usable: int,
    actors: int,
    wanted: tuple[float, int],
) -> None:
    nodes = Nodes(monkeypatch, *resources, usable=usable)
    asked = cpus_per_actor(actors)
    assert asked == pytest.approx(wanted[0], abs=1e-4)
    assert nodes.slept_s == 0
    if resources == [HEAD]:
        nodes.resources = (HEAD, EIGHT)
    nodes.actor = (len(nodes.resources) - 1, {"CPU": asked})
    assert cores(actors) == wanted[1]


def test_actors_with_gpus_are_shared_out_by_those(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, HEAD, EIGHT, V100, V100)
    assert cpus_per_actor(2, num_gpus=1) == 7
    assert cpus_per_actor(4, num_gpus=1) == 7, "as many as there are GPUs"
    assert cpus_per_actor(4, num_gpus=0.5) == 3.5
    nodes.actor = (2, {"CPU": 1.0, "GPU": 1.0})
    assert cores(4) == 64, "no other finds a GPU there"
    nodes = Nodes(monkeypatch, HEAD, EIGHT)
    assert cpus_per_actor(4, num_gpus=1) == 1, "nodes with GPUs are yet to come"


@pytest.mark.parametrize(
    ("actors", "threads", "wanted"), [(1, 1, 1), (1, 3, 3), (1, 16, 3), (2, 1, 1), (2, 2, 1.5), (8, 1, 0.375)]
)
def test_threads_that_were_chosen_are_asked_for_as_far_as_all_actors_find_room(
    monkeypatch: pytest.MonkeyPatch, actors: int, threads: int, wanted: float
) -> None:
    Nodes(monkeypatch, {"CPU": 4.0}, usable=2)
    assert cpus_per_actor(actors, threads=threads) == wanted


def test_busy_cluster_is_asked_for_less_after_earlier_actors_had_time_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(monkeypatch, HEAD, EIGHT, EIGHT)
    nodes.idle = 6
    assert cpus_per_actor(1) == 3
    assert nodes.slept_s >= 10
    assert cpus_per_actor(3) == 2
    nodes.idle = 0
    assert cpus_per_actor(1) == 0.5


def test_actors_of_an_earlier_pass_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, HEAD, EIGHT, EIGHT)
    nodes.idle = 2

    def ended(seconds: float) -> None:
        nodes.slept_s += seconds
        nodes.idle = 16

    monkeypatch.setattr(cluster.time, "sleep", ended)
    assert cpus_per_actor(2) == 7
    assert nodes.slept_s < 1


@given(
    cpus=st.lists(st.integers(2, 64), min_size=1, max_size=6),
    gpus=st.lists(st.integers(0, 8), min_size=6, max_size=6),
    actors=st.integers(1, 40),
)
def test_all_actors_find_room_and_leave_a_cpu_of_every_node(
    cpus: list[int], gpus: list[int], actors: int
) -> None:
    rooms = [Room(each - 1, most or actors) for each, most in zip(cpus, gpus, strict=False)]
    placed = min(actors, sum(room.actors for room in rooms))
    share = largest_share(placed, rooms)

    def found(share: float) -> int:
        return sum(min(room.actors, math.floor(room.cpus / share + 1e-6)) for room in rooms)

    assert found(share) >= placed
    assert found(share * 1.001) < placed, "they could have more"


def test_cores_without_ray_are_shared_by_all_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(monkeypatch, EIGHT, usable=8)
    assert [cores(actors) for actors in (1, 3, 8, 20)] == [8, 2, 1, 1], "as the driver"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cores(4) == 2
    assert nodes.actor is None
