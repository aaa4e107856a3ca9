"""What the ingress asks of replicas: logits from one, the state of all. Dead ones are handled only here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any

import numpy as np
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.serve.errors import BackendError, OverloadedError, UnhealthyError
from tinyqa_ray.serve.model import Packed, Reply
from tinyqa_ray.serve.service import EngineInfo, Logits

_LOST = (RayActorError, DeploymentUnavailableError)
"""Answer to a request whose replica died."""
_TOLD_S = 5.0
"""Seconds within which every replica must answer."""
_HEARD_S = 5.0
"""Seconds within which Serve tells a new process which replicas there are."""


class Replicas:
    """The running replicas of a deployment, which are all asked at once."""

    def __init__(self, deployment: DeploymentHandle) -> None:
        self._deployment = deployment
        self._heard = False

    async def told(self, method: str) -> list[Any]:
        """The answer of each replica; those that die meanwhile are left out.

        It does not wait for replicas that are still starting, and starts none.
        """
        found, end = await self._told(method), time.monotonic() + _HEARD_S
        while not (found or self._heard or time.monotonic() > end):
            await asyncio.sleep(0.02)
            found = await self._told(method)
        self._heard = self._heard or bool(found)
        return found

    async def _told(self, method: str) -> list[Any]:
        try:
            asked = self._deployment.broadcast(method)
            found = await asked.results_async(timeout_s=_TOLD_S, return_exceptions=True)
        except (asyncio.TimeoutError, TimeoutError, DeploymentUnavailableError):
            return []
        return [each for each in found if not isinstance(each, BaseException)]


class Backend:
    """The replicas of the model, as the ingress sees them."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model
        self.replicas = Replicas(model)

    async def run(self, windows: Tokens) -> Logits:
        """Logits of windows from one replica, or from another one if the first died while it ran them.

        Raises:
            RequestError: they are refused, or failed; the caller's answer.
        """
        packed = Packed.of(windows)
        try:
            reply = await self._asked(packed)
        except RayTaskError as error:
            raise BackendError(f"the model failed ({type(error.cause).__name__}); try again") from error
        if reply.logits is None:
            raise OverloadedError(reply.refusal, reply.retry_after_s)
        return np.split(reply.logits, np.cumsum(packed.lengths)[:-1], axis=1)

    async def engine(self) -> EngineInfo:
        """What runs the model now; replicas on machines of several kinds may have chosen several engines.

        Raises:
            UnhealthyError: nothing does.
        """
        engines: list[EngineInfo] = await self.replicas.told("engine")
        if not engines:
            raise UnhealthyError("the model is not ready")
        return replace(engines[0], name=", ".join(sorted({each.name for each in engines})))

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
