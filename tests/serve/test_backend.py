"""What the ingress makes of replicas that answer, die, or are not there."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.serve import backend as module
from tinyqa_ray.serve.backend import Backend, Replicas
from tinyqa_ray.serve.errors import BackendError, OverloadedError, UnhealthyError
from tinyqa_ray.serve.model import Reply
from tinyqa_ray.serve.service import EngineInfo

ENGINE = EngineInfo(name="chance", parameters=7)
UNAVAILABLE = DeploymentUnavailableError("the model")


class Deployment:
    """A handle of a deployment whose replicas say what they are told to, one list a call."""

    def __init__(self, *calls: Sequence[Any] | Exception) -> None:
        self.calls = list(calls)
        self.logits = self

    def broadcast(self, method: str) -> Deployment:
        return self

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> Sequence[Any]:
        assert return_exceptions
        call = self.calls.pop(0)
        if isinstance(call, Exception):
            raise call
        return call

    def remote(self, packed: Any) -> asyncio.Future[Any]:
        call, answer = self.calls.pop(0), asyncio.get_running_loop().create_future()
        if isinstance(call, Exception):
            answer.set_exception(call)
        else:
            answer.set_result(call[0])
        return answer


def windows(*lengths: int) -> Tokens:
    ids = [np.ones(tokens, dtype=np.int32) for tokens in lengths]
    return Tokens(ids, ids)


def reply(tokens: int) -> Reply:
    return Reply(np.arange(2 * tokens, dtype=np.float32).reshape(2, tokens))


def test_server_is_unhealthy_while_no_replica_lives_and_healthy_again_with_a_new_one() -> None:
    backend = Backend(Deployment([ENGINE], [ActorDiedError()], UNAVAILABLE, TimeoutError(), [ENGINE]))

    async def lived() -> None:
        assert await backend.engine() == ENGINE
        for _ in range(3):
            with pytest.raises(UnhealthyError, match="the model is not ready"):
                await backend.engine()
        assert await backend.engine() == ENGINE

    asyncio.run(lived())


def test_one_living_replica_is_enough() -> None:
    assert asyncio.run(Backend(Deployment([ActorDiedError(), ENGINE])).engine()) == ENGINE


def test_engines_of_replicas_that_chose_differently_are_all_named() -> None:
    other = replace(ENGINE, name="other")
    found = asyncio.run(Backend(Deployment([other, ENGINE, ENGINE])).engine())
    assert found.name == f"{ENGINE.name}, other"


def test_dead_replicas_are_left_out_of_what_all_say() -> None:
    replicas = Replicas(Deployment(["a", "b"], ["a", ActorDiedError()]))

    async def asked() -> list[list[str]]:
        return [await replicas.told("figures"), await replicas.told("figures")]

    assert asyncio.run(asked()) == [["a", "b"], ["a"]]


def test_new_process_waits_until_it_hears_of_the_replicas() -> None:
    assert asyncio.run(Replicas(Deployment(UNAVAILABLE, UNAVAILABLE, ["a"])).told("figures")) == ["a"]


def test_new_process_waits_no_longer_than_it_takes_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARD_S", 0.0)
    deployment = Deployment(*[UNAVAILABLE] * 100)
    assert asyncio.run(Replicas(deployment).told("figures")) == []
    assert deployment.calls


def test_logits_come_back_window_by_window() -> None:
    found = asyncio.run(Backend(Deployment([reply(5)])).run(windows(2, 3)))
    assert [each.tolist() for each in found] == [[[0, 1], [5, 6]], [[2, 3, 4], [7, 8, 9]]]


def test_request_whose_replica_died_is_asked_of_another_one_once() -> None:
    backend = Backend(Deployment(ActorDiedError(), [reply(2)], ActorDiedError(), UNAVAILABLE))

    async def asked() -> None:
        assert len(await backend.run(windows(2))) == 1
        with pytest.raises(BackendError, match="what ran the model died; try again"):
            await backend.run(windows(2))

    asyncio.run(asked())


def test_refusal_of_a_replica_is_an_overload() -> None:
    backend = Backend(Deployment([Reply(None, "9 tokens wait already", 2.5)]))
    with pytest.raises(OverloadedError, match="9 tokens wait already") as refused:
        asyncio.run(backend.run(windows(2)))
    assert refused.value.headers == {"Retry-After": "3"}
