"""Connecting to Ray: the cluster of a job, or a quiet local one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def connected() -> Iterator[None]:
    """Ray, started here unless it runs already; what was started here is stopped at the end.

    Inside a job (``RAY_ADDRESS``) it is the cluster's. On a laptop it is a local one with at least four
    logical CPUs: with two, an actor that holds both would starve the tasks that feed it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A task's own noise stays in Ray's log folder; its errors come back as exceptions.
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        # Ray alone would join a cluster that somebody has started on this machine, and refuse num_cpus then.
        options |= {"address": "local", "num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
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
        # Or else DeepSpeed, which transformers imports where it is installed, says so on stdout.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def cores(actors: int) -> int:
    """Torch threads of each of ``actors`` that share this machine, at least one."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, available // actors)
