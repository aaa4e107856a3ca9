from __future__ import annotations

from typing import Any

import pytest
import ray

from tinyqa_ray.cluster import connected


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ``ray.init`` was called with."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return calls


def test_without_an_address_a_ray_of_its_own_is_started_whoever_else_has_one(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connected():
        (options,) = started
    assert options["address"] == "local"
    assert options["num_cpus"] >= 4


def test_with_an_address_that_cluster_is_joined_as_it_is(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with connected():
        (options,) = started
    assert not options.keys() & {"address", "num_cpus"}
