"""Whatever is sent, nothing is a 500."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

ALLOWED = {200, 422}
VALID: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/answer",
        {"question": "Who?", "contexts": ["Ada.", {"text": "Bo.", "id": "b", "meta": {"a": [1]}}]},
    ),
    ("/v1/answer", {"questions": ["Who?", "When?"], "contexts": ["Ada."], "top_k": 3, "no_answer": False}),
    ("/", {"inputs": {"question": "Who?", "context": "Ada."}, "parameters": {"top_k": 2, "doc_stride": 5}}),
]
# Also what JSON may spell and UTF-8 may not: half a surrogate pair.
TEXTS = st.text(st.characters(codec="utf-8") | st.sampled_from("\ud83d\udc00\u0000\u202e\ufeff"), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def client(chance_api: Any, bearer: dict[str, str]) -> Iterator[TestClient]:
    headers = {**bearer, "Content-Type": "application/json"}
    with TestClient(chance_api, raise_server_exceptions=False, headers=headers) as made:
        yield made


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all that can be changed in a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, each in inner for found in places(each, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


def check(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(path, content=body)
    assert reply.status_code in ALLOWED, (body, reply.text)
    if reply.status_code != 200:
        assert reply.json().keys() == {"error", "error_type"}


fuzzed = settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@fuzzed
@given(st.sampled_from(VALID), st.data())
def test_body_with_a_value_changed_is_answered_or_refused(
    client: TestClient, valid: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    path, body = valid
    place = data.draw(st.sampled_from(places(body)))
    check(client, path, json.dumps(changed(body, place, data.draw(VALUES))).encode())


@fuzzed
@given(st.sampled_from(VALID), TEXTS, VALUES)
def test_body_with_a_field_more_is_answered_or_refused(
    client: TestClient, valid: tuple[str, dict[str, Any]], name: str, value: Any
) -> None:
    path, body = valid
    check(client, path, json.dumps({**body, name: value}).encode())


@fuzzed
@given(st.sampled_from(VALID), st.data())
def test_broken_bytes_are_refused(
    client: TestClient, valid: tuple[str, dict[str, Any]], data: st.DataObject
) -> None:
    path, body = valid
    whole = json.dumps(body).encode()
    cut = data.draw(st.integers(0, len(whole)))
    check(client, path, whole[:cut] + data.draw(st.binary(max_size=8)) + whole[cut + 1 :])


@fuzzed
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=300), st.integers(1, 100))
def test_any_text_is_answered_with_its_own_words(client: TestClient, text: str, top_k: int) -> None:
    body = {"question": "Who?", "contexts": [text], "top_k": top_k}
    reply = client.post("/v1/answer", json=body)
    assert reply.status_code == 200, reply.text
    for answer in reply.json()["answers"]:
        if answer["answer"] is not None:
            assert text[answer["start"] : answer["end"]] == answer["answer"]
