from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest

from tinyqa_ray.core import machine
from tinyqa_ray.core.machine import granted_cores, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n"}, math.inf),  # the group of all has no such file
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "600000 200000\n",
            },
            3.0,
        ),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "5:memory:/a\n4:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/\n",
                f"{V1}/a/cpu.cfs_quota_us": "150000\n",
                f"{V1}/a/cpu.cfs_period_us": "100000\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            1.5,
        ),
        (
            {  # in a container, under the host's name
                "proc/self/cgroup": "4:cpuacct,cpu:/docker/0123\n",
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
    ],
)
def test_quota_of_control_groups_is_read(tmp_path: Path, files: dict[str, str], wanted: float) -> None:
    assert granted_cores(write(tmp_path, files)) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no affinity")
@pytest.mark.parametrize(
    ("allowed", "granted", "wanted"), [(8, math.inf, 8), (8, 2.0, 2), (8, 3.9, 3), (8, 0.5, 1), (2, 6.0, 2)]
)
def test_usable_cores_are_those_allowed_and_granted(
    monkeypatch: pytest.MonkeyPatch, allowed: int, granted: float, wanted: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    monkeypatch.setattr(machine, "granted_cores", lambda: granted)
    assert usable_cores() == wanted
