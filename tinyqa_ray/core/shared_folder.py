"""Whether the nodes of a cluster see a local folder that their workers are to write to."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from tinyqa_ray.core import storage
from tinyqa_ray.core.errors import InputError

_WAIT_S = 60.0
"""Longest time in which the nodes are asked."""


@contextlib.contextmanager
def probed(output: str) -> Iterator[str | None]:
    """Refuse an output on a disk that some node of the connected cluster does not see.

    Its workers would write there to disks of their own, and the results would be lost with them. A probe
    file is written and each node looks for it, so a mount that all nodes share passes without an option. It
    stays until the block ends, since nodes may join the cluster later: workers look for it when they start
    (``check_seen``). A store behind a URL passes.

    Args:
        output: folder, made if it is absent.

    Yields:
        the probe's path; None for a store.

    Raises:
        InputError: a node does not see the folder; the message names its address.
    """
    if not storage.is_local(output):
        yield None
        return
    probe = storage.join(storage.absolute(output), f"probe-{uuid.uuid4().hex}{storage.LEFTOVER}")
    storage.write_atomic(probe, b"")
    try:
        nodes = _nodes()
        blind = _blind(probe, nodes) if len(nodes) > 1 else []
        if blind:
            whose = f"{len(blind)} of the cluster's {len(nodes)} nodes ({', '.join(blind[:3])})"
            raise InputError(_refusal(output, whose))
        yield probe
    finally:
        storage.delete_file(probe)


def check_seen(probe: str | None) -> None:
    """Refuse to work in this process, which may run on a node that joined late, if it does not see a probe.

    Raises:
        InputError: the probe is not there; the message names the folder and this node's address.
    """
    import ray

    if probe is not None and not _sees(probe):
        raise InputError(_refusal(probe.rpartition("/")[0], f"the node {ray.util.get_node_ip_address()}"))


def _refusal(output: str, whose: str) -> str:
    return (
        f"{output}: is not seen by {whose}, whose workers would write to their own disks; give an --output "
        "that all nodes share: a store (s3://…) or a mounted folder"
    )


def _nodes() -> dict[str, str]:
    """Addresses, by id, of the nodes that may run workers, and of this one, which reads what they write."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    found = (
        node
        for node in ray.nodes()
        if node["Alive"] and (node["NodeID"] == own or node["Resources"].get("CPU"))
    )
    return {node["NodeID"]: node["NodeManagerAddress"] for node in found}


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
