"""``tinyqa serve`` before it starts Ray, and how it stops."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import DeploymentUnavailableError

from tinyqa_ray.cli import main
from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.core import forms
from tinyqa_ray.serve import server


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_start_ray", lambda *_: pytest.fail("Ray was started"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "nowhere/at-all"], "nowhere/at-all"),
        (["--model", "MODEL", "--api-key-file", "no-such-file"], "no-such-file: no such file"),
        (["--model", "MODEL", "--max-replicas", "0"], "max_replicas is 0"),
        (["--model", "MODEL", "--port", "TAKEN"], "cannot be listened on"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_ray_starts(
    tiny_bert: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        given = {"MODEL": tiny_bert, "TAKEN": str(other.getsockname()[1])}
        with pytest.raises(SystemExit) as stop:
            main.main(["serve", *(given.get(each, each) for each in options)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("tinyqa: ")
    assert said in line


@pytest.mark.parametrize(
    ("environment", "config", "prepared"),
    [
        ({}, ServeConfig(model="MODEL"), [("MODEL", "auto")]),
        ({}, ServeConfig(model="MODEL", num_gpus=1), []),
        ({"RAY_ADDRESS": "ray://head:10001"}, ServeConfig(model="MODEL"), []),
    ],
    ids=["on this machine", "on cards", "on a cluster"],
)
def test_forms_are_made_before_ray_starts_where_they_are_seen(
    environment: dict[str, str],
    config: ServeConfig,
    prepared: list[tuple[str, str]],
    tiny_bert: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class StartedError(Exception):
        pass

    def started(*_: Any) -> None:
        raise StartedError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found: list[tuple[str, str]] = []
    monkeypatch.setattr(forms, "prepare", lambda model, precision: found.append((model, precision)))
    monkeypatch.setattr(server, "_start_ray", started)
    with pytest.raises(StartedError):
        server.run(replace(config, model=tiny_bert), port=0)
    assert found == [(tiny_bert, precision) for _, precision in prepared]


class Told:
    """A handle of the ingress that keeps what it is told."""

    def __init__(self, replies: Sequence[Any] | Exception = ()) -> None:
        self.told: list[tuple[str, str]] = []
        self.replies = replies

    def broadcast(self, method: str, state: str) -> Told:
        self.told.append((method, state))
        return self

    async def results_async(self, *, return_exceptions: bool) -> Sequence[Any]:
        assert return_exceptions
        if isinstance(self.replies, Exception):
            raise self.replies
        return self.replies


def test_server_that_stops_says_so_first_and_then_takes_nothing_more() -> None:
    ingress = Told([None, ActorDiedError()])
    asyncio.run(server._stop(ingress, drain_s=0.001))
    assert ingress.told == [("enter", "draining"), ("enter", "closed")]


def test_server_that_stops_without_a_drain_closes_at_once() -> None:
    ingress = Told()
    asyncio.run(server._stop(ingress, drain_s=0.0))
    assert ingress.told == [("enter", "closed")]


def test_server_whose_ingress_died_can_be_stopped() -> None:
    asyncio.run(server._stop(Told(DeploymentUnavailableError("the ingress")), drain_s=0.0))


@pytest.mark.parametrize(
    ("config", "cpus"),
    [
        (ServeConfig(model="m", threads=1), 4),
        (ServeConfig(model="m", threads=2, max_replicas=3, ingress_replicas=4), 12),
    ],
)
def test_local_ray_has_room_for_one_replica_more_than_there_may_be(config: ServeConfig, cpus: int) -> None:
    assert server._cpus(config) == cpus
