"""``tinyqa serve``: a local or connected Ray with the application on it, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.core import forms, storage
from tinyqa_ray.core.cluster import cores, quiet
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models import hub, pretrained
from tinyqa_ray.models.settings import read_settings
from tinyqa_ray.serve import ray_settings
from tinyqa_ray.serve.gate import read_key

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

NAME = "tinyqa"
_OTHER_CPUS = 1
"""Logical CPUs that a local Ray has for Serve's own actors, beside those of the replicas."""


def run(
    config: ServeConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    drain_s: float = 0.0,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then answer the requests under way, and stop.

    Args:
        config: what to serve.
        host: address to listen on.
        port: port to listen on.
        drain_s: seconds in which ``/health`` says 503 while requests are still taken, so that a load balancer
            can send them elsewhere first.
        ready: called with the address once the model answers.

    Raises:
        InputError: the model cannot be served, or the port is taken.
    """
    settings = None if config.settings is None else storage.absolute(config.settings)
    config = replace(config, model=_place(config.model), settings=settings)
    if config.api_key_file is not None:
        config = replace(config, api_key_file=storage.absolute(config.api_key_file))
    pretrained.load_config(config.model)
    read_settings(config.model, config.settings)
    read_key(config.api_key_file)
    _check_port(host, port)
    if not (config.num_gpus or os.environ.get("RAY_ADDRESS")):
        # What a replica says is seen in Ray's logs only. The nodes of a cluster make their own forms.
        forms.prepare(hub.at_commit(config.model), config.precision)
    stop = threading.Event()

    def stopping(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():  # a second signal stops at once
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    folder = ray_settings.haproxy_folder()
    try:
        started = _start_ray(config, folder)
        for number in before:  # only now, since Ray sets its own handlers when it starts
            signal.signal(number, stopping)
        ingress = _start(config, host, port, folder if started else None)
        ready(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}")
        stop.wait()
        # Serve would stop the model at the same time as the ingress, which still needs it.
        asyncio.run(_stop(ingress, drain_s))
        if os.environ.get("RAY_ADDRESS"):  # a cluster goes on, perhaps with others' applications
            _delete()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        import ray

        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _start_ray(config: ServeConfig, haproxy_folder: str | None) -> bool:
    """Connect to Ray; False if this process was connected before, and Ray lacks our environment."""
    for name, value in ray_settings.environment(haproxy_folder, config.limits.timeout_s).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if not os.environ.get("RAY_ADDRESS"):
        options |= {"address": "local", "num_cpus": _cpus(config), "include_dashboard": False}
    ray.init(**options)
    quiet()
    return True


def _cpus(config: ServeConfig) -> int:
    """Logical CPUs of a local Ray, with room for one more replica of each kind when a new version starts."""
    from tinyqa_ray.serve.app import INGRESS_CPUS

    models = (config.max_replicas + 1) * (config.threads or cores(1))
    return max(4, models + math.ceil((config.ingress_replicas + 1) * INGRESS_CPUS) + _OTHER_CPUS)


def _start(config: ServeConfig, host: str, port: int, haproxy_folder: str | None) -> DeploymentHandle:
    """Start the application, and return its handle once it is warm."""
    from ray import serve

    from tinyqa_ray.serve.app import application

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # Serve's own time limit would answer 408; the application has one, for the whole request.
    serve.start(http_options={"host": host, "port": port, "request_timeout_s": None})
    if haproxy_folder is not None:
        ray_settings.set_error_page(haproxy_folder)
    try:
        return serve.run(application(config), name=NAME, route_prefix="/")
    except RuntimeError as error:
        _delete()
        raise InputError(f"{config.model}: cannot be served ({_last_line(error)})") from None


async def _stop(ingress: DeploymentHandle, drain_s: float) -> None:
    """Answer 503 to ``/health``, then to every new request; return when the last old one is answered."""
    from ray.serve.exceptions import DeploymentUnavailableError

    # When the ingress has died, nothing is left to answer.
    with contextlib.suppress(DeploymentUnavailableError):
        if drain_s > 0:
            await ingress.broadcast("enter", "draining").results_async(return_exceptions=True)
            await asyncio.sleep(drain_s)
        await ingress.broadcast("enter", "closed").results_async(return_exceptions=True)


def _delete() -> None:
    from ray import serve

    serve.delete(NAME)


def _place(model: str) -> str:
    """The absolute path of a local folder, since replicas work in other folders; other names unchanged."""
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
