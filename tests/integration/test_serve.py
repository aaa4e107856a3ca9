"""``tinyqa serve`` as a process: what callers see, also when replicas die, load rises, or it is to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser as chromium
import fire
import pytest
import requests
import tiny

from tinyqa_ray.reader import Reader

browser = chromium.browser
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
]

PARAGRAPHS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
ASKED = {"question": "Who built the lighthouse?", "contexts": PARAGRAPHS}
LONG = {"question": "Who built the lighthouse?", "contexts": [" ".join(PARAGRAPHS * 10)] * 2}


class Server:
    """A server in a process of its own."""

    def __init__(self, driver: fire.Driver, url: str) -> None:
        self.driver, self.url = driver, url
        self.headers: dict[str, str] = {}

    def post(self, body: Any, path: str = "/v1/answer", timeout_s: float = 60.0) -> requests.Response:
        """Ask over a connection of its own."""
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=timeout_s)

    def replicas(self) -> list[int]:
        """Processes that run the model."""
        found = fire.descendants(self.driver.process.pid)
        return [each.number for each in found if "ServeReplica" in each.line and "ModelReplica" in each.line]


@contextmanager
def served(model: str, *options: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "tinyqa_ray", "serve", "--model", model, "--port", str(port), "--threads", "1", *options]
    with fire.Driver(*command) as driver:
        server = Server(driver, f"http://127.0.0.1:{port}")

        def healthy() -> bool:
            assert driver.process.poll() is None, driver.result()[1]
            try:
                return requests.get(f"{server.url}/health", timeout=5).status_code == 200
            except (requests.ConnectionError, requests.Timeout):
                return False

        fire.wait_for("a warm server", healthy)
        yield server


@pytest.fixture(scope="module")
def server(tiny_bert: str) -> Iterator[Server]:
    """One server for all, of up to two replicas, quick to start the second and to stop it."""
    scaling = ["--max-replicas", "2", "--target-ongoing-requests", "2"]
    delays = ["--upscale-delay-s", "1", "--downscale-delay-s", "3"]
    with served(tiny_bert, *scaling, *delays) as made:
        yield made


@contextmanager
def load(server: Server, body: Any, clients: int) -> Iterator[list[int | str]]:
    """So many callers, each with one request after the other; the list is of what they got."""
    seen: list[int | str] = []
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            seen.append(_outcome(server, body))

    threads = [threading.Thread(target=call) for _ in range(clients)]
    for thread in threads:
        thread.start()
    yield seen
    stop.set()
    for thread in threads:
        thread.join()


def _outcome(server: Server, body: Any) -> int | str:
    """Status of a reply, or the name of what happened instead."""
    try:
        reply = server.post(body)
    except requests.RequestException as error:
        return type(error).__name__
    if reply.status_code == 200 and not reply.json()["answers"]:
        return "no answers"
    return reply.status_code


def test_answers_over_http_are_those_of_the_reader(server: Server, tiny_bert: str) -> None:
    reply = server.post({**ASKED, "top_k": 3})
    assert reply.status_code == 200, reply.text
    expected = Reader.from_pretrained(tiny_bert).answer(ASKED["question"], PARAGRAPHS, top_k=3)  # type: ignore[arg-type]
    found = [(each["answer"], each["document_id"]) for each in reply.json()["answers"]]
    assert found == [(each.answer, each.document_id) for each in expected]


def test_hugging_faces_client_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import InferenceClient

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=server.url)
    (context,) = PARAGRAPHS[:1]
    one = client.question_answering(question=str(ASKED["question"]), context=context)
    assert not isinstance(one, list)
    assert context[one.start : one.end] == one.answer
    several = client.question_answering(question=str(ASKED["question"]), context=context, top_k=3)
    assert isinstance(several, list)
    assert [each.score for each in several] == sorted((each.score for each in several), reverse=True)


def test_page_of_the_server_answers_in_a_browser(
    server: Server, browser: chromium.webdriver.Chrome, tmp_path: Path
) -> None:
    browser.get(server.url)
    page = chromium.Page(browser)
    expected = server.post({**ASKED, "top_k": 3}).json()["answers"]
    page.ask(str(ASKED["question"]), *PARAGRAPHS)
    assert page.text("#answer") == (expected[0]["answer"] or "No answer")
    assert chromium.console_errors(browser) == []
    chromium.screenshot(browser, tmp_path / "served.png")


def test_caller_who_hangs_up_or_sends_half_a_body_disturbs_nobody(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    head = f"POST /v1/answer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with load(server, ASKED, 2) as seen:
        for sent in (head, head + body[: len(body) // 2], head + body):
            for _ in range(5):
                with socket.create_connection((host, int(port))) as caller:
                    caller.sendall(sent)
        time.sleep(1)
    assert set(seen) == {200}
    assert server.post(ASKED).status_code == 200


def test_replicas_follow_the_load_and_nothing_is_lost(server: Server) -> None:
    fire.wait_for("one replica", lambda: len(server.replicas()) == 1, 60)
    with load(server, LONG, 8) as seen:
        fire.wait_for("a second replica", lambda: len(server.replicas()) == 2, 90)
        time.sleep(2)
    fire.wait_for("one replica again", lambda: len(server.replicas()) == 1, 90)
    assert set(seen) == {200}
    assert server.post(ASKED).status_code == 200


def test_killed_replica_costs_at_most_the_requests_it_had(server: Server) -> None:
    with load(server, ASKED, 4) as seen:
        fire.wait_for("answers", lambda: len(seen) > 20, 60)
        (victim, *_) = server.replicas()
        os.kill(victim, signal.SIGKILL)
        fire.wait_for(
            "another replica", lambda: victim not in server.replicas() and bool(server.replicas()), 60
        )
        done = len(seen)
        fire.wait_for("answers again", lambda: len(seen) > done + 20 and seen[-1] == 200, 60)
    counts = Counter(seen)
    assert counts.keys() <= {200, 503}
    assert counts[503] <= 4 * 2


REDEPLOY = """
import sys
import ray
from ray import serve
from tinyqa_ray.configs import ServeConfig
from tinyqa_ray.serve.app import application

ray.init(address=sys.argv[1], log_to_driver=False)
serve.run(application(ServeConfig(model=sys.argv[2], threads=1, max_batch_tokens=128)), name="tinyqa")
"""


def test_new_version_takes_over_under_load_and_nothing_is_lost(server: Server, tiny_bert: str) -> None:
    lines = [each.line for each in fire.descendants(server.driver.process.pid)]
    (address,) = {found[1] for line in lines if (found := re.search(r"--gcs-address=([\d.:]+)", line))}
    with load(server, ASKED, 4) as seen:
        fire.wait_for("answers", lambda: len(seen) > 20, 60)
        before = server.replicas()
        with fire.Driver("-c", REDEPLOY, address, tiny_bert) as deploying:
            code, printed = deploying.result()
        assert code == 0, printed
        fire.wait_for("new replicas alone", lambda: not {*before} & {*server.replicas()}, 60)
        done = len(seen)
        fire.wait_for("answers again", lambda: len(seen) > done + 20, 60)
    assert set(seen) == {200}


def test_told_to_stop_it_drains_and_answers_what_it_has_taken(tiny_bert: str, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("open sesame\n")
    with served(tiny_bert, "--drain-s", "3", "--api-key-file", str(key)) as server:
        assert server.post(ASKED).status_code == 401
        server.headers = {"Authorization": "Bearer open sesame"}
        replies: list[requests.Response] = []
        threads = [threading.Thread(target=lambda: replies.append(server.post(LONG))) for _ in range(6)]
        for thread in threads:
            thread.start()
        before = server.replicas()
        server.driver.process.send_signal(signal.SIGTERM)
        fire.wait_for("503", lambda: requests.get(f"{server.url}/health", timeout=30).status_code == 503, 30)
        assert server.replicas() == before  # what they are told is no reason to start anew
        assert server.post(ASKED).status_code == 200  # still taken, until balancers know
        for thread in threads:
            thread.join()
        assert [reply.status_code for reply in replies] == [200] * 6
        code, printed = server.driver.result()
    assert code == 0, printed
    assert "Traceback" not in printed
    assert "open sesame" not in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (lambda model, port: ["--model", "nowhere/at-all"], "nowhere/at-all"),
        (lambda model, port: ["--model", model, "--port", str(port)], "cannot be listened on"),
        (
            lambda model, port: ["--model", model, "--api-key-file", "no-such-file"],
            "no-such-file: no such file",
        ),
        (lambda model, port: ["--model", model, "--max-replicas", "0"], "max_replicas is 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    tiny_bert: str, options: Callable[[str, int], list[str]], said: str
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with fire.Driver("-m", "tinyqa_ray", "serve", *options(tiny_bert, other.getsockname()[1])) as driver:
            code, printed = driver.result()
    assert code == 2
    assert said in printed
    assert len(printed.strip().splitlines()) == 1, printed
