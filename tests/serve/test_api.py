from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny
from starlette.testclient import TestClient

from tinyqa_ray import pipeline
from tinyqa_ray.configs import LimitConfig, ServeConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.reader import Reader
from tinyqa_ray.serve import gate
from tinyqa_ray.serve.api import create_api
from tinyqa_ray.serve.errors import OverloadedError, UnhealthyError
from tinyqa_ray.serve.metrics import Figures, Metrics, queue_figures, text
from tinyqa_ray.serve.model import Model, Packed
from tinyqa_ray.serve.queue import Counts
from tinyqa_ray.serve.service import EngineInfo, Logits, Service

PARAGRAPHS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
QUESTION = "Who built the lighthouse?"
LONG = " ".join(PARAGRAPHS * 12)

JSON = {"Content-Type": "application/json"}

Make = Callable[..., TestClient]


@pytest.fixture(scope="module")
def model(tiny_bert: str) -> Model:
    return Model(ServeConfig(model=tiny_bert, threads=1))


@pytest.fixture
def make(model: Model, tiny_bert: str) -> Iterator[Make]:
    """A client of the application, over a model in this process."""
    clients = []

    def made(
        limits: LimitConfig | None = None,
        *,
        run: Any = None,
        engine: Any = None,
        key: bytes | None = None,
        state: str = "open",
        **options: Any,
    ) -> TestClient:
        metrics = Metrics()

        async def run_here(windows: Tokens) -> Logits:
            packed = Packed.of(windows)
            reply = await model.logits(packed)
            assert reply.logits is not None
            return np.split(reply.logits, np.cumsum(packed.lengths)[:-1], axis=1)

        async def about() -> EngineInfo:
            return EngineInfo(name=model.engine.name, parameters=model.engine.parameters)

        async def every() -> list[Figures]:
            return [metrics.figures("front"), queue_figures("one", model.queue.counts)]

        config = ServeConfig(model=tiny_bert, limits=limits or LimitConfig(), **options)
        service = Service(config, run or run_here)
        going = gate.State()
        going.now = state
        api = create_api(service, engine or about, metrics, every=every, key=key, state=going)
        # Its loop stays the same from request to request, as the queue needs it.
        client: TestClient = TestClient(api, raise_server_exceptions=False).__enter__()
        clients.append(client)
        return client

    yield made
    for client in clients:
        client.__exit__(None, None, None)


def ask(client: TestClient, **body: Any) -> dict[str, Any]:
    reply = client.post("/v1/answer", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def refused(client: TestClient, status: int, error_type: str, **body: Any) -> str:
    reply = client.post("/v1/answer", json=body)
    return problem(reply, status, error_type)


def problem(reply: Any, status: int, error_type: str) -> str:
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body.keys() == {"error", "error_type"}
    assert body["error_type"] == error_type
    return str(body["error"])


@pytest.mark.parametrize("no_answer", [True, False])
@pytest.mark.parametrize("top_k", [1, 4])
def test_answers_are_those_of_the_reader(make: Make, tiny_bert: str, no_answer: bool, top_k: int) -> None:
    contexts = [*PARAGRAPHS, LONG]
    found = ask(make(), question=QUESTION, contexts=contexts, top_k=top_k, no_answer=no_answer)
    expected = Reader.from_pretrained(tiny_bert).answer(
        QUESTION, contexts, top_k=top_k, threshold=None if no_answer else 1.0
    )
    for mine, theirs in zip(found["answers"], expected, strict=True):
        names = ("answer", "start", "end", "document_id")
        assert [mine[name] for name in names] == [getattr(theirs, name) for name in names]
        assert mine["score"] == pytest.approx(theirs.score, abs=1e-5)
        assert mine["na_prob"] == pytest.approx(theirs.na_prob, abs=1e-5)


@pytest.mark.parametrize("top_k", [2, "all"])
@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_evidence_is_that_of_the_reader(
    make: Make, tiny_bert: str, top_k: int | Literal["all"], threshold: float
) -> None:
    contexts = [*PARAGRAPHS[:3], PARAGRAPHS[0], {"id": "seven", "text": PARAGRAPHS[3], "meta": {"n": 7}}]
    texts = [*PARAGRAPHS[:3], PARAGRAPHS[0], PARAGRAPHS[3]]
    client = make(threshold=threshold)
    found = ask(client, question=QUESTION, contexts=contexts, top_k=top_k, evidence=True)["answers"]
    expected = Reader.from_pretrained(tiny_bert).evidence(QUESTION, texts, top_k=top_k, threshold=threshold)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["answer"] == theirs.answer
        assert mine["score"] == pytest.approx(theirs.score, abs=1e-5)
        assert len(mine["places"]) == len(theirs.places)
        for place, other in zip(mine["places"], theirs.places, strict=True):
            text = texts[4 if place["document_id"] == "seven" else int(place["document_id"])]
            assert text[place["start"] : place["end"]] == place["answer"] == other.answer
            assert text[place["sentence_start"] :].startswith(place["sentence"])
            assert place.get("meta") == ({"n": 7} if place["document_id"] == "seven" else None)
    if top_k == "all" and threshold > 0:
        assert any(len(each["places"]) > 1 for each in found)  # one text came twice
    asked = ask(client, question=QUESTION, contexts=contexts)["answers"]
    assert "places" not in asked[0]


def test_all_answers_and_those_that_score_enough(make: Make, tiny_bert: str) -> None:
    reader = Reader.from_pretrained(tiny_bert)
    client = make(threshold=0.9)
    every = ask(client, question=QUESTION, contexts=PARAGRAPHS, top_k="all")["answers"]
    expected = reader.answer(QUESTION, PARAGRAPHS, top_k="all", threshold=0.9)
    assert [each["answer"] for each in every] == [each.answer for each in expected]
    least = (every[0]["score"] + every[-1]["score"]) / 2
    some = ask(client, question=QUESTION, contexts=PARAGRAPHS, top_k="all", min_score=least)["answers"]
    assert some == [each for each in every if each["score"] >= least] != every
    assert "top_k" in refused(client, 422, "Validation", question=QUESTION, contexts=["a"], top_k="some")
    assert "min_score" in refused(client, 422, "Validation", question=QUESTION, contexts=["a"], min_score=2)


def test_several_questions_are_answered_as_each_alone(make: Make) -> None:
    client = make()
    questions = [QUESTION, "What did they burn?"]
    found = ask(client, questions=questions, contexts=PARAGRAPHS[:3], top_k=2)
    assert [each["question"] for each in found["results"]] == questions
    for each in found["results"]:
        alone = ask(client, question=each["question"], contexts=PARAGRAPHS[:3], top_k=2)["answers"]
        assert [a["answer"] for a in each["answers"]] == [a["answer"] for a in alone]
    assert found["usage"]["contexts"] == 3
    assert found["usage"]["windows"] == 6


def test_ids_and_meta_come_back_with_their_passage(make: Make) -> None:
    context = {"id": "page 7", "text": PARAGRAPHS[0], "meta": {"url": "é", "n": [1, None]}}
    (answer,) = ask(make(), question=QUESTION, contexts=[context], no_answer=False)["answers"]
    assert (answer["document_id"], answer["meta"]) == ("page 7", context["meta"])
    assert PARAGRAPHS[0][answer["start"] : answer["end"]] == answer["answer"]


def test_passages_of_the_same_id_keep_their_own_meta(make: Make) -> None:
    contexts = [
        {"id": "1", "text": PARAGRAPHS[0], "meta": {"n": 0}},
        PARAGRAPHS[1],  # the second passage, whose id is its number
        {"id": "1", "text": PARAGRAPHS[2], "meta": {"n": 2}},
    ]
    found = ask(make(), question=QUESTION, contexts=contexts, top_k=100, no_answer=False)["answers"]
    seen = {(each["document_id"], (each["meta"] or {}).get("n")) for each in found}
    assert seen == {("1", 0), ("1", None), ("1", 2)}
    for each in found:
        place = 1 if each["meta"] is None else each["meta"]["n"]
        assert PARAGRAPHS[place][each["start"] : each["end"]] == each["answer"]


def test_offsets_count_characters_not_bytes(make: Make) -> None:
    text = "😀 " + PARAGRAPHS[0]
    (answer,) = ask(make(), question=QUESTION, contexts=[text], no_answer=False)["answers"]
    assert text[answer["start"] : answer["end"]] == answer["answer"]


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 3}, {"handle_impossible_answer": True}, {"align_to_words": False, "max_answer_len": 3}],
)
def test_inference_schema_gives_what_the_pipeline_gives(
    make: Make, tiny_bert: str, options: dict[str, Any]
) -> None:
    inputs = {"question": QUESTION, "context": LONG}
    reply = make().post("/", json={"inputs": inputs, "parameters": options})
    assert reply.status_code == 200
    expected = pipeline("question-answering", model=tiny_bert)(**inputs, **options)
    found = reply.json() if isinstance(expected, list) else [reply.json()]
    expected = expected if isinstance(expected, list) else [expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert {**mine, "score": 0} == {**theirs, "score": 0}
        assert mine["score"] == pytest.approx(theirs["score"], rel=1e-4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "the body is not a JSON object"),
        (b"{", "JSON decode error"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"question": "\xff"}', "cannot be read"),
        (b"null", "the body is not a JSON object"),
        (b'{"question": "a", "contexts": []}', "contexts: List should have at least 1 item"),
        (b'{"question": " ", "contexts": ["a"]}', "the question is empty"),
        (b'{"contexts": ["a"]}', "give either question or questions"),
        (b'{"question": "a", "questions": ["b"], "contexts": ["a"]}', "give either question or questions"),
        (b'{"question": "\\ud800", "contexts": ["a"]}', "question: holds half a surrogate pair"),
        (b'{"question": "a", "contexts": ["a"], "top_k": 0}', "top_k: Input should be greater"),
        (b'{"question": "a", "contexts": ["a"], "topk": 2}', "topk: Extra inputs are not permitted"),
        (b'{"question": "a", "contexts": [{"text": 5}]}', "contexts.0.text: Input should be a valid string"),
        (b'{"question": "a", "contexts": [{"text": "a", "meta": {"a": NaN}}]}', "meta holds NaN, Infinity"),
    ],
)
def test_bad_body_is_refused_in_one_line(make: Make, body: bytes, said: str) -> None:
    reply = make().post("/v1/answer", content=body, headers=JSON)
    assert reply.status_code == 422
    assert said in problem(reply, reply.status_code, "Validation")


def test_limits_are_told_with_their_numbers(make: Make) -> None:
    limits = LimitConfig(max_body_bytes=5000, max_contexts=3, max_questions=2, max_request_tokens=300)
    client = make(limits)
    asked = {"question": QUESTION, "contexts": ["a"]}
    assert "4 contexts, over the limit of 3" in refused(
        client, 422, "Validation", **{**asked, "contexts": ["a"] * 4}
    )
    assert "3 questions, over the limit of 2" in refused(
        client, 422, "Validation", questions=["a"] * 3, contexts=["a"]
    )
    assert "over the limit of 300" in refused(
        client, 422, "Validation", **{**asked, "contexts": [PARAGRAPHS[0] * 10]}
    )
    body = json.dumps({**asked, "contexts": ["a" * 6000]}).encode()
    said = f"the body has {len(body)} bytes, over the limit of 5000"
    assert said in problem(client.post("/v1/answer", content=body, headers=JSON), 413, "TooLarge")
    reply = client.post("/v1/answer", content=iter([b"a" * 3000] * 3), headers=JSON)  # of no said length
    assert "more than 5000 bytes" in problem(reply, 413, "TooLarge")
    assert "too little of a window" in refused(client, 422, "Validation", question="a " * 500, contexts=["a"])


async def never(*_: Any) -> Any:
    await asyncio.sleep(60)
    raise AssertionError


@pytest.mark.parametrize("slow", ["run", "engine"])
def test_what_takes_too_long_is_a_timeout_wherever_it_does(make: Make, slow: str) -> None:
    client = make(LimitConfig(timeout_s=0.05), **{slow: never})
    asked = {"json": {"question": "a", "contexts": ["a"]}}
    reply = client.post("/v1/answer", **asked) if slow == "run" else client.get("/info")
    assert "not answered within 0.05 s" in problem(reply, 504, "Timeout")


def test_windows_that_are_cut_too_slowly_are_a_timeout(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "off_the_loop", never)
    assert refused(make(LimitConfig(timeout_s=0.05)), 504, "Timeout", question="a", contexts=["a"])


def test_body_that_does_not_come_is_a_timeout(make: Make) -> None:
    gate_ = make(LimitConfig(timeout_s=0.05)).app
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/answer"}
    headers = [(b"content-type", b"application/json"), (b"content-length", b"5")]
    asyncio.run(gate_({**scope, "headers": headers}, never, send))
    assert sent[0]["status"] == 504
    assert json.loads(sent[1]["body"])["error_type"] == "Timeout"


def test_overload_is_429_with_the_time_to_come_again(make: Make) -> None:
    async def full(windows: Tokens) -> Logits:
        raise OverloadedError("9 tokens wait already", 2.4)

    reply = make(run=full).post("/v1/answer", json={"question": "a", "contexts": ["a"]})
    assert problem(reply, 429, "Overloaded") == "9 tokens wait already"
    assert reply.headers["retry-after"] == "3"


def test_bug_is_a_500_that_tells_nothing_inside(make: Make) -> None:
    async def broken(windows: Tokens) -> Logits:
        raise KeyError("secret")

    client = make(run=broken)
    assert refused(client, 500, "Internal", question="a", contexts=["a"]) == "the server failed; see its log"


async def cold() -> EngineInfo:
    raise UnhealthyError("the model is not ready")


def test_health_is_503_before_the_model_is_warm_and_while_draining(make: Make) -> None:
    assert make().get("/health").json() == {"status": "ok"}
    assert problem(make(engine=cold).get("/health"), 503, "Unhealthy") == "the model is not ready"
    going = make(state="draining")
    assert problem(going.get("/health"), 503, "Unhealthy") == "the server is going down"
    assert ask(going, question=QUESTION, contexts=PARAGRAPHS[:1])["answers"]


def test_health_does_not_wake_a_model_that_may_sleep(make: Make) -> None:
    assert make(engine=cold, min_replicas=0).get("/health").json() == {"status": "ok"}


def test_document_says_how_many_questions_and_contexts_a_request_may_have(make: Make) -> None:
    document = make(LimitConfig(max_contexts=3, max_questions=2)).get("/openapi.json").json()
    fields = document["components"]["schemas"]["AnswerRequest"]["properties"]
    assert fields["contexts"]["maxItems"] == 3
    assert [each.get("maxItems") for each in fields["questions"]["anyOf"]] == [2, None]


def test_closed_server_takes_nothing_more(make: Make) -> None:
    client = make(state="closed")
    said = "the server is going down; try another one"
    assert refused(client, 503, "Unhealthy", question=QUESTION, contexts=PARAGRAPHS) == said
    problem(client.get("/health"), 503, "Unhealthy")


def test_key_is_asked_for_everywhere_but_at_the_page_health_and_docs(make: Make) -> None:
    client = make(key=b"open sesame")
    for path in ("/", "/health", "/docs", "/openapi.json"):
        assert client.get(path).status_code == 200
    right = {"Authorization": "Bearer open sesame"}
    asked = {"question": QUESTION, "contexts": PARAGRAPHS[:1]}
    for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic open sesame"}):
        for call in (client.get("/info", headers=headers), client.get("/metrics", headers=headers)):
            problem(call, 401, "Unauthorized")
        reply = client.post("/v1/answer", json=asked, headers=headers)
        assert "Authorization: Bearer KEY" in problem(reply, 401, "Unauthorized")
        assert reply.headers["www-authenticate"] == "Bearer"
        problem(client.post("/", json={}, headers=headers), 401, "Unauthorized")
    assert client.post("/v1/answer", json=asked, headers=right).status_code == 200
    assert client.get("/metrics", headers=right).status_code == 200


def test_document_asks_for_the_key_where_the_server_does(make: Make) -> None:
    document = make(key=b"open sesame").get("/openapi.json").json()
    ((name, scheme),) = document["components"]["securitySchemes"].items()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    operations = {
        (method, path): each
        for path, methods in document["paths"].items()
        for method, each in methods.items()
    }
    guarded = {place for place, each in operations.items() if each.get("security") == [{name: []}]}
    assert guarded == {("post", "/v1/answer"), ("post", "/"), ("get", "/info"), ("get", "/metrics")}
    assert guarded == {place for place, each in operations.items() if "401" in each["responses"]}
    without = make().get("/openapi.json").json()
    assert "securitySchemes" not in without["components"]
    assert not any("security" in each for methods in without["paths"].values() for each in methods.values())


ASKED = json.dumps({"question": QUESTION, "contexts": PARAGRAPHS[:1]}).encode()
FORMS = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", ""]


@pytest.mark.parametrize("kind", [*FORMS, "application/jsonp", "text/json", "x; application/json"])
@pytest.mark.parametrize("path", ["/v1/answer", "/"])
def test_body_that_is_not_said_to_be_json_is_refused_unread(make: Make, path: str, kind: str) -> None:
    # A page from elsewhere may post the first four to a server on its reader's machine, unasked.
    headers = {"Origin": "https://elsewhere.example"} | ({"Content-Type": kind} if kind else {})
    reply = make().post(path, content=ASKED, headers=headers)
    assert "send JSON, with Content-Type: application/json" in problem(reply, 415, "MediaType")
    too_long = make(LimitConfig(max_body_bytes=1)).post(path, content=ASKED, headers=headers)
    problem(too_long, 415, "MediaType")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.tinyqa.v1+json"]
)
def test_json_by_any_of_its_names_is_read(make: Make, kind: str) -> None:
    reply = make().post("/v1/answer", content=ASKED, headers={"Content-Type": kind})
    assert reply.status_code == 200, reply.text


def test_pages_from_elsewhere_are_not_given_leave_to_ask(make: Make) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    client = make()
    for path in ("/v1/answer", "/", "/info"):
        reply = client.options(path, headers={**origin, **wanted})
        assert reply.status_code == 405
        assert not [name for name in reply.headers if name.startswith("access-control")]
    reply = client.post("/v1/answer", content=ASKED, headers={**origin, **JSON})
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(gate.KEY, raising=False)
    assert gate.read_key(None) is None
    monkeypatch.setenv(gate.KEY, "from outside")
    assert gate.read_key(None) == b"from outside"
    file = tmp_path / "key"
    file.write_text("from a file\n")
    assert gate.read_key(str(file)) == b"from a file"
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty; write the key into it"):
        gate.read_key(str(file))


def test_metrics_count_requests_errors_and_padding(make: Make) -> None:
    client = make()
    ask(client, question=QUESTION, contexts=PARAGRAPHS[:2])
    refused(client, 422, "Validation", question="", contexts=["a"])
    client.get("/no-such-page")
    shown = series(client.get("/metrics").text)
    assert shown['tinyqa_requests_total{path="/v1/answer",replica="front",status="200"}'] == 1.0
    assert shown['tinyqa_requests_total{path="/v1/answer",replica="front",status="422"}'] == 1.0
    assert shown['tinyqa_requests_total{path="other",replica="front",status="404"}'] == 1.0
    assert shown['tinyqa_errors_total{error_type="Validation",replica="front"}'] == 1.0
    assert shown['tinyqa_request_seconds_count{path="/v1/answer",replica="front"}'] == 2.0
    tokens, padded = (
        shown[f'tinyqa_batch_{kind}_total{{replica="one"}}'] for kind in ("tokens", "padded_tokens")
    )
    assert 0 < tokens <= padded
    assert shown['tinyqa_queue_tokens{replica="one"}'] == 0.0
    assert shown['tinyqa_requests_under_way{replica="front"}'] == 1.0  # this one


def series(shown: str) -> dict[str, float]:
    """Values of Prometheus' format, by name and labels."""
    lines = [line.rsplit(" ", 1) for line in shown.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_of_several_replicas_stand_side_by_side_under_their_names() -> None:
    fronts = {"a": Metrics(), "b": Metrics()}
    for count, metrics in enumerate(fronts.values(), 1):
        for _ in range(count):
            metrics.begun()
            metrics.ended("/v1/answer", 200, 0.01)
    queues = {"x": Counts(waiting_tokens=7), "y": Counts(waiting_tokens=8)}
    every = [metrics.figures(name) for name, metrics in fronts.items()]
    shown = text([*every, *(queue_figures(name, counts) for name, counts in queues.items())]).decode()
    assert shown.count("# TYPE tinyqa_requests_total counter") == 1
    found = series(shown)
    assert [found[f'tinyqa_queue_tokens{{replica="{name}"}}'] for name in "xy"] == [7.0, 8.0]
    labels = 'path="/v1/answer",replica="{}",status="200"'
    assert [found[f"tinyqa_requests_total{{{labels.format(name)}}}"] for name in "ab"] == [1.0, 2.0]


def test_info_says_what_answers_but_not_where_it_lies(make: Make, tiny_bert: str) -> None:
    info = make().get("/info").json()
    assert info["model"] == Path(tiny_bert).name
    assert info["engine"].startswith("torch float32")
    assert info["limits"]["max_contexts"] == 100
    assert tiny_bert not in json.dumps(info)


def test_threshold_of_the_config_goes_before_the_models(make: Make) -> None:
    always = make(threshold=0.0)
    assert ask(always, question=QUESTION, contexts=["Nothing."])["answers"][0]["answer"] is None
    never = make(threshold=1.0)
    assert ask(never, question=QUESTION, contexts=["Nothing."])["answers"][0]["answer"] is not None


def test_unfit_configs_are_refused(tiny_bert: str) -> None:
    config = ServeConfig(model=tiny_bert)
    with pytest.raises(InputError, match="min_replicas is 3, max_replicas 1; raise max_replicas"):
        replace(config, min_replicas=3)
    with pytest.raises(InputError, match=r"threshold is 1\.5"):
        replace(config, threshold=1.5)
