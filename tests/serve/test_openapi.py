"""The OpenAPI document is true: schemathesis makes requests of it, and holds every reply against it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.metrics import Metrics
from tinyqa_ray.serve.service import EngineInfo, Logits, Service
from tinyqa_ray.windows import Windows

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
CHECKS = pytest.importorskip("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def described(tiny_bert: str) -> Any:
    """The application, over logits drawn by chance, as its document describes it."""
    rng = np.random.default_rng(0)

    async def run(windows: Windows) -> Logits:
        return [rng.normal(size=(2, tokens)).astype(np.float32) for tokens in windows.lengths]

    async def engine() -> EngineInfo:
        return EngineInfo(name="chance", parameters=0)

    service = Service(ServeConfig(model=tiny_bert), run)
    return schemathesis.openapi.from_asgi("/openapi.json", create_api(service, engine, Metrics({})))


@pytest.mark.parametrize("mode", ["positive", "negative"])
@settings(deadline=None, max_examples=600, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_reply_is_as_the_document_says(described: Any, mode: str, data: st.DataObject) -> None:
    # Not schemathesis' own pytest plugin, which pytest 9.2 breaks.
    operation = data.draw(st.sampled_from([each.ok() for each in described.get_all_operations()]))
    case = data.draw(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    # What a model can read, of the parameters of its pipeline, the document cannot say.
    excluded = [CHECKS.positive_data_acceptance] if case.path == "/" else []
    case.call_and_validate(excluded_checks=excluded)
