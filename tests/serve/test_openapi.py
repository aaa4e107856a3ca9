"""The OpenAPI document is true: schemathesis makes requests of it, and holds every reply against it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
CHECKS = pytest.importorskip("schemathesis.specs.openapi.checks")


@pytest.fixture(scope="module")
def described(chance_api: Any) -> Any:
    """The application as its document describes it."""
    return schemathesis.openapi.from_asgi("/openapi.json", chance_api)


@pytest.mark.parametrize("mode", ["positive", "negative"])
@settings(deadline=None, max_examples=600, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_reply_is_as_the_document_says(
    described: Any, bearer: dict[str, str], mode: str, data: st.DataObject
) -> None:
    # Not schemathesis' own pytest plugin, which pytest 9.2 breaks.
    operation = data.draw(st.sampled_from([each.ok() for each in described.get_all_operations()]))
    case = data.draw(operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    case.headers.update(bearer)
    # What a model can read, of the parameters of its pipeline, the document cannot say.
    excluded = [CHECKS.positive_data_acceptance] if case.path == "/" else []
    case.call_and_validate(excluded_checks=excluded)
