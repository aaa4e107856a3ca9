"""What the ingress asks of the replicas: logits of one of them, the state of all. Here alone replicas die."""

from __future__ import annotations

import asyncio
import contextlib
import time
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
"""What a request sees whose replica died."""
_TOLD_S = 5.0
"""In which every replica must say what it is asked."""
_HEARD_S = 5.0
"""In which Serve tells a new process of the replicas that there are."""


class Replicas:
    """The running replicas of a deployment, asked all at once."""

    def __init__(self, deployment: DeploymentHandle) -> None:
        self._deployment = deployment
        self._heard = False

    async def told(self, method: str) -> list[Any]:
        """What each replica says; those that die while asked are left out.

        Nobody is waited for that does not run yet, and no replica is started for it.
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
        """Logits of windows from some replica; from another one, where the first died with them.

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
        """What runs the model now.

        Raises:
            UnhealthyError: nothing does.
        """
        engines: list[EngineInfo] = await self.replicas.told("engine")
        if not engines:
            raise UnhealthyError("the model is not ready")
        return engines[0]

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
