"""The cores of this machine that the process may use, and the memory that a process has."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Number of cores that this process can keep busy: those it may run on, up to its control group's limit.

    The limit is rounded down. With one thread too many, the group would be stopped in the middle of every
    period, and the other threads would wait.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.floor(min(allowed, granted_cores())))


def granted_cores(root: Path = Path("/")) -> float:
    """CPU time that the control groups of this process grant it, in cores; infinite without a limit.

    In version 2 the limit is in ``cpu.max``: a quota, or "max", and a period
    (https://docs.kernel.org/admin-guide/cgroup-v2.html). In version 1 it is in ``cpu.cfs_quota_us`` (-1 means
    no limit) and ``cpu.cfs_period_us`` (https://docs.kernel.org/scheduler/sched-bwc.html). The limits of the
    groups above apply too. In a container, the path given for the group may be the host's, which does not
    exist inside; the container's group is then the topmost one.

    Args:
        root: folder that holds ``proc`` and ``sys``.
    """
    memberships = root / "proc/self/cgroup"
    found = math.inf
    for line in memberships.read_text().splitlines() if memberships.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for name in {"cpu", controllers} if controllers else {""}:  # version 2 names no controllers
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


def resident_bytes(process: int) -> int:
    """Bytes of memory that a process holds (proc_pid_statm(5)); 0 if it has ended, or not on Linux."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
