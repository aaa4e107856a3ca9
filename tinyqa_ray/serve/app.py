"""The Ray Serve application: an ingress that speaks HTTP, and replicas of the model.

``serve deploy`` builds it from the arguments of a config file (``tinyqa_ray.serve.app:build``), ``tinyqa
serve`` from the options of the shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from tinyqa_ray import __version__
from tinyqa_ray.cluster import cores
from tinyqa_ray.configs import LimitConfig, ServeConfig
from tinyqa_ray.errors import InputError
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.errors import BackendError, OverloadedError, UnhealthyError
from tinyqa_ray.serve.gate import App, State, read_key
from tinyqa_ray.serve.metrics import Metrics
from tinyqa_ray.serve.model import Model, Packed, Reply
from tinyqa_ray.serve.queue import Counts
from tinyqa_ray.serve.service import EngineInfo, Logits, Service
from tinyqa_ray.windows import Windows

_MANY = 1_000_000
"""Requests that Serve lets in: tokens, not requests, are counted here, and what is too much is told so."""
_LOGS = {"log_level": "WARNING", "enable_access_log": False}
"""A line a request would cost more than its metrics, and might tell what was asked."""
_LOST = (RayActorError, DeploymentUnavailableError)
"""What a request sees whose replica died."""
_LOOK_BACK_S = 4.0
"""Over which the load is averaged, at least; it is measured four times in it."""
_STOP_S = 10.0
"""Beyond the time limit of a request, until a replica that is to stop is stopped."""
_STOP_LOOK_S = 0.2
"""Between two looks of a replica that is to stop at whether its last request is answered."""
_WARM_S = 2.0
"""Until ``/health`` gives up on a model that does not answer."""


class ModelReplica:
    """A replica of the model."""

    def __init__(self, config: ServeConfig) -> None:
        self._model = Model(config, serve.get_replica_context().replica_id.unique_id)

    async def logits(self, packed: Packed) -> Reply:
        """See ``Model.logits``."""
        return await self._model.logits(packed)

    async def engine(self) -> EngineInfo:
        """What runs the model."""
        return EngineInfo(name=self._model.engine.name, parameters=self._model.engine.parameters)


@serve.ingress()
class Ingress:
    """Reads requests, has their windows run, and answers."""

    def __init__(self, config: ServeConfig, model: DeploymentHandle) -> None:
        self._model = model
        self._replicas: dict[str, Counts] = {}
        self._engine: EngineInfo | None = None
        self._state = State()
        self._service = Service(config, self._run)

    def __serve_build_asgi_app__(self) -> App:
        """The HTTP application."""
        return create_api(
            self._service,
            self._about,
            Metrics(self._replicas),
            key=read_key(self._service.config.api_key_file),
            state=self._state,
        )

    async def reconfigure(self, settings: dict[str, Any]) -> None:
        """Take ``threshold`` and ``state`` while requests go on; ``closed`` returns when none is left."""
        if "threshold" in settings:
            self._service.set_threshold(settings["threshold"])
        self._state.now = settings.get("state", "open")
        if self._state.now == "closed":
            limit = asyncio.wait_for(self._state.idle(), self._service.config.limits.timeout_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await limit

    async def _about(self) -> EngineInfo:
        if self._engine is None:
            try:
                found: EngineInfo = await asyncio.wait_for(self._model.engine.remote(), _WARM_S)
            except (asyncio.TimeoutError, *_LOST):
                raise UnhealthyError("the model is not ready") from None
            self._engine = found
        return self._engine

    async def _run(self, windows: Windows) -> Logits:
        """Logits of windows from some replica; from another one, where the first died with them."""
        packed = Packed.of(windows)
        try:
            reply = await self._asked(packed)
        except RayTaskError as error:
            raise BackendError(f"the model failed ({type(error.cause).__name__}); try again") from error
        self._replicas[reply.replica] = reply.counts
        if reply.logits is None:
            raise OverloadedError(reply.refusal, reply.retry_after_s)
        return np.split(reply.logits, np.cumsum(packed.lengths)[:-1], axis=1)

    async def _asked(self, packed: Packed) -> Reply:
        with contextlib.suppress(*_LOST):
            return await self._replied(packed)
        try:
            return await self._replied(packed)
        except _LOST:
            raise BackendError("what ran the model died; try again") from None

    async def _replied(self, packed: Packed) -> Reply:
        response = self._model.logits.remote(packed)
        try:
            reply: Reply = await response
        except asyncio.CancelledError:  # the caller has gone, or waited too long
            response.cancel()
            raise
        return reply


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, from the arguments of ``ServeConfig``.

    Raises:
        InputError: an argument is unknown, of the wrong type, or out of range.
    """
    _check_names(arguments, ServeConfig)
    if isinstance(limits := arguments.get("limits"), dict):
        _check_names(limits, LimitConfig)
    try:
        config = TypeAdapter(ServeConfig).validate_python(arguments)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "arguments"
        raise InputError(f"{where}: {first['msg']}") from None
    return application(config)


def _check_names(arguments: dict[str, Any], config: type) -> None:
    """Refuse what a config does not know, which pydantic passes over in a dataclass."""
    allowed = [field.name for field in dataclasses.fields(config)]
    for name in arguments:
        if name not in allowed:
            raise InputError(f"unknown argument {name!r}; allowed are {', '.join(allowed)}")


def application(config: ServeConfig, state: str = "open") -> serve.Application:
    """The application of a config; when only ``state`` or the threshold differ, no replica starts anew."""
    threads = config.threads or cores(1)
    stop_s = config.limits.timeout_s + _STOP_S
    model = serve.deployment(ModelReplica).options(
        ray_actor_options={"num_cpus": threads, "num_gpus": int(config.gpu)},
        max_ongoing_requests=_MANY,
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
            "look_back_period_s": max(_LOOK_BACK_S, config.upscale_delay_s),
            "metrics_interval_s": _LOOK_BACK_S / 4,
        },
        graceful_shutdown_timeout_s=stop_s,
        graceful_shutdown_wait_loop_s=_STOP_LOOK_S,
        logging_config=_LOGS,
    )
    ingress = serve.deployment(Ingress).options(
        num_replicas=config.ingress_replicas,
        # A part of a CPU: it works while the model waits for windows.
        ray_actor_options={"num_cpus": 0.5},
        max_ongoing_requests=_MANY,
        graceful_shutdown_timeout_s=stop_s,
        graceful_shutdown_wait_loop_s=_STOP_LOOK_S,
        logging_config=_LOGS,
        user_config={"threshold": config.threshold, "state": state},
    )
    # The threshold comes with the user_config alone, which replicas take without a new start; ``serve.run``
    # would give them one all the same, if it did not know the version.
    given = dataclasses.replace(config, threshold=None)
    version = hashlib.sha256(f"{__version__} {given}".encode()).hexdigest()[:16]
    ingress, model = (each.options(version=version, _internal=True) for each in (ingress, model))
    return ingress.bind(given, model.bind(given))
