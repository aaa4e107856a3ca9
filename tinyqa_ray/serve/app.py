"""The Ray Serve application: an ingress that speaks HTTP, and replicas of the model.

``serve deploy`` builds it from the arguments of a config file (``tinyqa_ray.serve.app:build``), ``tinyqa
serve`` from its command-line options. It may be part of another application, too:
``Mine.bind(build({"model": …}))`` gets a handle, and asks with ``await handle.answer.remote({"question": …,
"contexts": [...]})``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve.handle import DeploymentHandle

from tinyqa_ray.configs import LimitConfig, ServeConfig
from tinyqa_ray.core.cluster import cores
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.backend import Backend, Replicas
from tinyqa_ray.serve.gate import App, State, read_key
from tinyqa_ray.serve.metrics import Figures, Metrics, queue_figures
from tinyqa_ray.serve.model import Model, Packed, Reply
from tinyqa_ray.serve.schemas import AnswerRequest
from tinyqa_ray.serve.service import EngineInfo, Service

INGRESS_CPUS = 0.5
"""CPUs of a replica of the ingress: it works while the model waits for windows."""
_MANY = 1_000_000
"""Requests that Serve lets in: in effect all, since the application itself limits the tokens that wait."""
_LOGS = {"log_level": "WARNING", "enable_access_log": False}
"""No line for each request: it would cost more than its metrics, and might reveal what was asked."""
_LOOK_BACK_S = 4.0
"""Shortest time over which the load is averaged; the load is measured four times in it."""
_STOP_S = 60.0
"""Time that a stopping replica has beyond the time limit of a request: proxies send it requests until they
know that it stops."""
_STOP_LOOK_S = 0.2
"""Pause after which a stopping replica checks again whether its last request is answered."""
_SURGE_PERCENT = 1
"""Percentage of the replicas, at least one, that a new version starts and warms before old ones stop."""


class ModelReplica:
    """A replica of the model."""

    def __init__(self, config: ServeConfig) -> None:
        self._model = Model(config)

    async def logits(self, packed: Packed) -> Reply:
        """See ``Model.logits``."""
        return await self._model.logits(packed)

    async def engine(self) -> EngineInfo:
        """What runs the model."""
        return EngineInfo(name=self._model.engine.name, parameters=self._model.engine.parameters)

    async def figures(self) -> Figures:
        """What its queue has done so far."""
        return queue_figures(_own_name(), self._model.queue.counts)


@serve.ingress()
class Ingress:
    """Reads requests, has their windows run, and answers."""

    def __init__(self, config: ServeConfig, model: DeploymentHandle) -> None:
        self._backend = Backend(model)
        context = serve.get_replica_context()
        self._ingresses = Replicas(serve.get_deployment_handle(context.deployment, context.app_name))
        self._state = State()
        self._metrics = Metrics()
        self._service = Service(config, self._backend.run)

    def __serve_build_asgi_app__(self) -> App:
        """Make the HTTP application; ``serve.ingress`` calls this method by its name."""
        return create_api(
            self._service,
            self._backend.engine,
            self._metrics,
            every=self._every,
            key=read_key(self._service.config.api_key_file),
            state=self._state,
        )

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request in Python, for other deployments of an application.

        Args:
            request: what is posted to ``/v1/answer``, such as ``{"question": …, "contexts": [...]}``.

        Returns:
            what ``/v1/answer`` replies.

        Raises:
            pydantic.ValidationError: the request has not that form.
            RequestError: it is over a limit, cannot be asked, or too much is waiting; see ``status``.
        """
        reply = await self._service.answer(AnswerRequest.model_validate(request))
        return reply.model_dump(exclude_none=False)

    async def enter(self, state: str) -> None:
        """Change to a state of ``State``; ``closed`` waits for requests under way, up to their limit."""
        self._state.now = state
        if state == "closed":
            limit = asyncio.wait_for(self._state.idle(), self._service.config.limits.timeout_s)
            with contextlib.suppress(asyncio.TimeoutError):
                await limit

    async def figures(self) -> Figures:
        """The requests that it has counted so far."""
        return self._metrics.figures(_own_name())

    async def _every(self) -> list[Figures]:
        """The figures of all replicas of ingress and model, whichever ingress replica is asked."""
        ingresses, models = await asyncio.gather(
            self._ingresses.told("figures"), self._backend.replicas.told("figures")
        )
        own = await self.figures()
        return [own, *(each for each in ingresses if each.replica != own.replica), *models]


def _own_name() -> str:
    """The name of this process's replica."""
    name: str = serve.get_replica_context().replica_id.unique_id
    return name


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
    """Refuse names that a config does not have, or has renamed; pydantic would ignore them."""
    allowed = [field.name for field in dataclasses.fields(config)]
    for name in arguments:
        if name not in allowed and name in (renamed := getattr(config, "RENAMED", {})):
            raise InputError(f"argument {name!r} is now called {renamed[name]!r}")
        if name not in allowed:
            raise InputError(f"unknown argument {name!r}; allowed are {', '.join(allowed)}")


def application(config: ServeConfig) -> serve.Application:
    """The application of a config."""
    threads = config.threads or cores(1)
    replaced: dict[str, Any] = {
        "max_surge_percent": _SURGE_PERCENT,
        "graceful_shutdown_timeout_s": config.limits.timeout_s + _STOP_S,
        "graceful_shutdown_wait_loop_s": _STOP_LOOK_S,
    }
    model = serve.deployment(ModelReplica).options(
        ray_actor_options={"num_cpus": threads, "num_gpus": config.num_gpus},
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
        logging_config=_LOGS,
        **replaced,
    )
    ingress = serve.deployment(Ingress).options(
        num_replicas=config.ingress_replicas,
        ray_actor_options={"num_cpus": INGRESS_CPUS},
        max_ongoing_requests=_MANY,
        logging_config=_LOGS,
        **replaced,
    )
    return ingress.bind(config, model.bind(config))
