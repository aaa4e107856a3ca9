"""Connecting to Ray (a job's cluster or a local one), and how actors share the cores of its nodes."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tinyqa_ray.core.machine import usable_cores

_LEAST_CPUS = 0.5
"""CPUs that an actor asks for at least, however busy the cluster is."""
_RELEASE_S = 10.0
"""Time in which the actors of an earlier pass give back their CPUs."""
_UNIT = 1e-4
"""Smallest amount of a resource that Ray counts."""


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray unless this process is connected already, and disconnect at the end.

    Inside a job (``RAY_ADDRESS``) this joins the cluster. Elsewhere it starts a local Ray with one logical
    CPU more than there are cores, and at least four: actors that held all of them would starve the tasks
    that feed them.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What tasks print stays in Ray's log folder; their errors come back as exceptions.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # By default Ray would join a cluster that somebody has started on this machine, and refuse num_cpus.
        options |= {"address": "local", "num_cpus": max(4, usable_cores() + 1), "include_dashboard": False}
    ray.init(**options)
    quiet()
    try:
        yield
    finally:
        ray.shutdown()


def quiet() -> None:
    """Keep libraries' progress bars and chatter off the terminal; their warnings still reach a log file."""
    from ray.data import DataContext

    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    quiet_models()


def quiet_models() -> None:
    """Keep the loading bars, advice and retries of transformers and the hub off the terminal."""
    import torch
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    if not torch.cuda.is_available():
        # Otherwise DeepSpeed, which transformers imports if installed, says on stdout that it chose the CPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def cores(actors: int) -> int:
    """Torch threads for this process, one of ``actors``: its share of the machine's cores, at least one.

    On a cluster, the cores are shared by as many of the actors as Ray has room for on this node.
    """
    return max(1, usable_cores() // _sharing(actors))


def _sharing(actors: int) -> int:
    """Number of actors that may run on the node of this one."""
    if actors == 1 or "ray" not in sys.modules:
        return actors
    import ray

    if not ray.is_initialized():
        return actors
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:  # this is the driver, which works on the pass itself
        return actors
    here: dict[str, float] = next(
        node["Resources"] for node in ray.nodes() if node["NodeID"] == context.get_node_id()
    )
    room: list[int] = [
        math.floor(here.get(name, 0) / amount + _UNIT)
        for name, amount in context.get_assigned_resources().items()
    ]
    return max(1, min([actors, *room]))


@dataclass(frozen=True, slots=True)
class Room:
    """What one node offers to actors: its CPUs, and the most actors that its GPUs can serve."""

    cpus: float
    actors: int


def cpus_per_actor(actors: int, num_gpus: float = 0.0, threads: int = 0) -> float:
    """CPUs that each actor should ask Ray for: as many as its threads keep busy.

    These are ``threads`` or, if that is 0, the actor's share of a node's cores, so that Ray does not crowd
    the actors on one node while other nodes are idle. All actors find room, and one CPU of each node (half
    of it if it has only one) stays free for the tasks that feed them. If other jobs keep the cluster busy, an
    actor asks for less, since one that asked for a whole node might wait forever.

    Args:
        actors: number of actors in the pass.
        num_gpus: GPUs of one actor.
        threads: threads of one actor; 0 means its share of the cores.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    rooms = []
    for node in ray.nodes():
        cpus, gpus = (node["Resources"].get(name, 0.0) for name in ("CPU", "GPU"))
        if not node["Alive"] or not cpus or gpus < num_gpus:
            continue
        free = max(cpus - 1, cpus / 2)
        if node["NodeID"] == own and not threads:
            free = min(free, usable_cores())  # a local Ray has more logical CPUs than there are cores
        rooms.append(Room(free, math.floor(gpus / num_gpus) if num_gpus else actors))
    if not rooms:  # an autoscaler will start the nodes that are asked for
        return threads or 1
    placed = min(actors, sum(room.actors for room in rooms))
    wanted = min(threads or math.inf, largest_share(placed, rooms))
    end = time.monotonic() + _RELEASE_S
    while (idle := _idle_cpus() / max(placed, len(rooms))) < wanted and time.monotonic() < end:
        time.sleep(0.1)
    return math.floor(min(wanted, max(idle, _LEAST_CPUS)) / _UNIT) * _UNIT


def _idle_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


def largest_share(actors: int, rooms: Sequence[Room]) -> float:
    """The most CPUs that each of ``actors`` can have if all of them are to find room."""
    shares = {room.cpus / n for room in rooms for n in range(1, min(actors, room.actors) + 1)}
    return max(
        share
        for share in shares
        if sum(min(room.actors, math.floor(room.cpus / share + _UNIT)) for room in rooms) >= actors
    )
