"""Whether the nodes of a cluster see a local folder that their workers are to write to."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

_WAIT_S = 60.0
"""Longest time in which the nodes are asked."""


def check_shared(output: str) -> None:
    """Refuse an output on a disk that some node of the connected cluster does not see.

    Its workers would write there to disks of their own, and the results would be lost with them. A probe
    file is written and each node looks for it, so a mount that all nodes share passes without an option. A
    store behind a URL passes, and so does a single node.

    Args:
        output: folder, made if it is absent.

    Raises:
        InputError: a node does not see the folder; the message names its address.
    """
    if not storage.is_local(output):
        return
    nodes = _nodes()
    if len(nodes) < 2:
        return
    probe = storage.join(storage.absolute(output), f"probe-{uuid.uuid4().hex}{storage.LEFTOVER}")
    storage.write_atomic(probe, b"")
    try:
        blind = _blind(probe, nodes)
    finally:
        storage.delete_file(probe)
    if blind:
        raise InputError(
            f"{output}: is not seen by {len(blind)} of the cluster's {len(nodes)} nodes "
            f"({', '.join(blind[:3])}), whose workers would write to their own disks; give an --output that "
            "all nodes share: a store (s3://…) or a mounted folder"
        )


def _nodes() -> dict[str, str]:
    """Addresses of the nodes that may run workers, by id."""
    import ray

    alive = (node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    return {node["NodeID"]: node["NodeManagerAddress"] for node in alive}


def _blind(probe: str, nodes: dict[str, str]) -> list[str]:
    """Addresses of the nodes that do not see a file; a node that does not answer is left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {
        ray.remote(_sees)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(probe): address
        for node, address in nodes.items()
    }
    answered, waiting = ray.wait([*asked], num_returns=len(asked), timeout=_WAIT_S)
    for task in waiting:
        ray.cancel(task, force=True)
    blind = []
    for task in answered:
        with contextlib.suppress(ray.exceptions.RayError):  # the node was lost
            if not ray.get(task):
                blind.append(asked[task])
    return blind


def _sees(file: str) -> bool:
    # Listing the folder asks a network mount anew, where looking for the file may be answered from a cache.
    folder = Path(file).parent
    return folder.is_dir() and any(path.name == Path(file).name for path in folder.iterdir())
