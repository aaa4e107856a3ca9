"""What this machine grants the process: the cores that it can keep busy."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process can keep busy: those it may run on, no more than its control group grants.

    Part of a core does not count: of threads that wait for each other, one too many is stopped in the middle
    of every period.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, granted_cores())))


def granted_cores(root: Path = Path("/")) -> float:
    """Cores' worth of time that the control groups of this process are granted; infinite without a limit.

    A group of version 2 has it in ``cpu.max``: quota, or "max", and period
    (https://docs.kernel.org/admin-guide/cgroup-v2.html). One of version 1 has it in ``cpu.cfs_quota_us``, -1
    for none, and ``cpu.cfs_period_us`` (https://docs.kernel.org/scheduler/sched-bwc.html). The groups above
    limit it too. In a container the path of its group may be the host's, which is not there: then the group
    itself is on top.

    Args:
        root: where ``proc`` and ``sys`` are.
    """
    memberships = root / "proc/self/cgroup"
    found = math.inf
    for line in memberships.read_text().splitlines() if memberships.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for name in {"cpu", controllers} if controllers else {""}:  # version 2 names none
            top = root / "sys/fs/cgroup" / name
            group = top / path.lstrip("/")
            groups = [group, *group.parents]
            found = min([found, *map(_granted, groups[: groups.index(top) + 1])])
    return found


def _granted(group: Path) -> float:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        if all((group / name).is_file() for name in names):
            quota, period = " ".join((group / name).read_text() for name in names).split()
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf
