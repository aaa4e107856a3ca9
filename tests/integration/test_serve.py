"""``tinyqa serve`` as a process: what callers see, also when replicas die, load rises, or it is to stop.

No request has a limit of time that a slow machine could reach, and what is waited for is a condition.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
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
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
]

PARAGRAPHS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
ASKED = {"question": "Who built the lighthouse?", "contexts": PARAGRAPHS}
LONG = {"question": "Who built the lighthouse?", "contexts": [" ".join(PARAGRAPHS * 10)] * 2}
KEY = "open-sesame"
UNHURRIED_S = fire.DEADLINE_S
"""Limits of a request, of the server and of its callers: longer than a slow machine needs."""


class Server:
    """A server in a process of its own."""

    def __init__(self, driver: fire.Driver, url: str) -> None:
        self.driver, self.url = driver, url
        self.headers = {"Authorization": f"Bearer {KEY}"}

    def post(self, body: Any, path: str = "/v1/answer") -> requests.Response:
        """Ask over a connection of its own."""
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=2 * UNHURRIED_S)

    def health(self) -> int:
        """Status of its health; 0 where there is none."""
        try:
            return requests.get(f"{self.url}/health", timeout=UNHURRIED_S).status_code
        except requests.ConnectionError:
            return 0

    def figures(self, name: str) -> dict[str, float]:
        """The values of a metric that has no other labels, by replica."""
        reply = requests.get(f"{self.url}/metrics", headers=self.headers, timeout=UNHURRIED_S)
        assert reply.status_code == 200, reply.text
        found = re.findall(rf'^{name}{{replica="(\w+)"}} (\S+)$', reply.text, re.MULTILINE)
        return {replica: float(value) for replica, value in found}

    def replicas(self) -> list[int]:
        """Processes that run the model."""
        found = fire.descendants(self.driver.process.pid)
        return [each.number for each in found if "ServeReplica" in each.line and "ModelReplica" in each.line]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"{KEY}\n")
    return str(file)


@contextmanager
def served(model: str, *options: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    limits = ["--timeout-s", str(UNHURRIED_S), "--max-wait-s", str(UNHURRIED_S)]
    command = ["serve", "--model", model, "--port", str(port), "--threads", "1", *limits, *options]
    with fire.Driver("-m", "tinyqa_ray", *command) as driver:
        server = Server(driver, f"http://127.0.0.1:{port}")

        def healthy() -> bool:
            assert driver.process.poll() is None, driver.result()[1]
            return server.health() == 200

        fire.wait_for("a warm server", healthy)
        yield server


@pytest.fixture(scope="module")
def server(tiny_bert: str, key_file: str) -> Iterator[Server]:
    """One server for all tests, the last of which stops it; its second replica is soon there and gone."""
    scaling = ["--max-replicas", "2", "--target-ongoing-requests", "2"]
    delays = ["--upscale-delay-s", "1", "--downscale-delay-s", "3"]
    stopping = ["--drain-s", "1"]
    with served(tiny_bert, "--api-key-file", key_file, *scaling, *delays, *stopping) as made:
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
    try:
        yield seen
    finally:
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
    if reply.status_code != 200 and reply.json().keys() != {"error", "error_type"}:
        return f"{reply.status_code}, not in the form of our errors"
    return reply.status_code


def wait_for_answers(seen: list[int | str], more: int = 20) -> None:
    """Wait until callers have had so many more replies, and an answer last."""
    done = len(seen)
    fire.wait_for("answers", lambda: len(seen) > done + more and seen[-1] == 200)


def test_answers_over_http_are_those_of_the_reader(server: Server, tiny_bert: str) -> None:
    reply = server.post({**ASKED, "top_k": 3})
    assert reply.status_code == 200, reply.text
    expected = Reader.from_pretrained(tiny_bert).answer(ASKED["question"], PARAGRAPHS, top_k=3)  # type: ignore[arg-type]
    found = [(each["answer"], each["document_id"]) for each in reply.json()["answers"]]
    assert found == [(each.answer, each.document_id) for each in expected]
    assert requests.post(f"{server.url}/v1/answer", json=ASKED, timeout=UNHURRIED_S).status_code == 401


def test_hugging_faces_client_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import InferenceClient

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client = InferenceClient(model=server.url, token=KEY)
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
    page.until(lambda: page.text("#info") == "This server needs a key.")
    page.run("document.querySelector('#api-key').value = arguments[0]", KEY)
    chromium.console_errors(browser)  # of the request without it
    expected = server.post({**ASKED, "top_k": 3}).json()["answers"]
    page.ask(str(ASKED["question"]), *PARAGRAPHS)
    assert page.text("#answer") == (expected[0]["answer"] or "No answer")
    assert chromium.console_errors(browser) == []
    chromium.screenshot(browser, tmp_path / "served.png")


def test_caller_who_hangs_up_or_sends_half_a_body_disturbs_nobody(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    lines = [f"Host: {host}", f"Authorization: Bearer {KEY}", "Content-Type: application/json"]
    lines = ["POST /v1/answer HTTP/1.1", *lines, f"Content-Length: {len(body)}", "", ""]
    head = "\r\n".join(lines).encode()
    with load(server, ASKED, 2) as seen:
        for sent in (head, head + body[: len(body) // 2], head + body):
            for _ in range(5):
                with socket.create_connection((host, int(port))) as caller:
                    caller.sendall(sent)
        wait_for_answers(seen)
        # Nobody waits any more for those that hung up: two callers and this question are all.
        fire.wait_for("their end", lambda: sum(server.figures("tinyqa_requests_under_way").values()) <= 3)
        fire.wait_for(
            "their windows' end", lambda: sum(server.figures("tinyqa_queue_tokens").values()) < 5000
        )
    assert set(seen) == {200}


@pytest.mark.slow
def test_replicas_follow_the_load_and_nothing_is_lost(server: Server) -> None:
    fire.wait_for("one replica", lambda: len(server.replicas()) == 1)
    with load(server, LONG, 8) as seen:
        # Also the second one answers, and is counted.
        forwards = "tinyqa_forwards_total"
        fire.wait_for(
            "a second replica", lambda: len([*filter(None, server.figures(forwards).values())]) == 2
        )
    fire.wait_for("one replica again", lambda: len(server.replicas()) == 1)
    fire.wait_for("its figures alone", lambda: len(server.figures("tinyqa_queue_tokens")) == 1)
    assert set(seen) == {200}
    assert server.post(ASKED).status_code == 200


def test_killed_replicas_cost_at_most_the_requests_they_had(server: Server) -> None:
    with load(server, ASKED, 4) as seen:
        wait_for_answers(seen)
        victims, names = server.replicas(), {*server.figures("tinyqa_queue_tokens")}
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        fire.wait_for("503 on /health, with no replica left", lambda: server.health() == 503)
        fire.wait_for("200 on /health, with another one", lambda: server.health() == 200)
        assert not {*victims} & {*server.replicas()}
        found = server.figures("tinyqa_queue_tokens")
        assert found
        assert not names & {*found}
        wait_for_answers(seen)
    counts = Counter(seen)
    assert counts.keys() <= {200, 503}
    # A request is asked once more; it is lost where the other replica, too, is one of those that die.
    assert counts[503] <= 4 * 2


REDEPLOY = """
import json, sys, threading
import ray
from ray import serve
from tinyqa_ray.serve.app import build

ray.init(address=sys.argv[1], log_to_driver=False)
done, least = threading.Event(), {}

def watch():
    while not done.is_set():
        for name, deployment in serve.status().applications["tinyqa"].deployments.items():
            running = deployment.replica_states.get("RUNNING", 0)
            least[name] = min(running, least.get(name, running))

watching = threading.Thread(target=watch)
watching.start()
serve.run(build(json.loads(sys.argv[2])), name="tinyqa")
done.set()
watching.join()
print(json.dumps(least))
"""


def test_new_version_takes_over_under_load_and_nothing_is_lost(
    server: Server, tiny_bert: str, key_file: str
) -> None:
    lines = [each.line for each in fire.descendants(server.driver.process.pid)]
    (address,) = {found[1] for line in lines if (found := re.search(r"--gcs-address=([\d.:]+)", line))}
    limits = {"timeout_s": UNHURRIED_S, "max_wait_s": UNHURRIED_S}
    version = {"model": tiny_bert, "threads": 1, "max_batch_tokens": 128, "api_key_file": key_file}
    with load(server, ASKED, 4) as seen:
        wait_for_answers(seen)
        before = server.replicas()
        with fire.Driver("-c", REDEPLOY, address, json.dumps({**version, "limits": limits})) as deploying:
            code, printed = deploying.result()
        assert code == 0, printed
        least = json.loads(printed.splitlines()[-1])
        assert least.keys() == {"Ingress", "ModelReplica"}
        assert min(least.values()) >= 1  # at no time was there nobody to answer
        fire.wait_for("new replicas alone", lambda: not {*before} & {*server.replicas()})
        wait_for_answers(seen)
    assert set(seen) == {200}


def test_told_to_stop_it_drains_and_answers_what_it_has_taken(server: Server) -> None:
    replies: list[requests.Response] = []
    threads = [threading.Thread(target=lambda: replies.append(server.post(LONG))) for _ in range(6)]
    for thread in threads:
        thread.start()
    # With this question, seven.
    fire.wait_for(
        "requests under way",
        lambda: replies or sum(server.figures("tinyqa_requests_under_way").values()) >= 7,
    )
    server.driver.process.send_signal(signal.SIGTERM)
    fire.wait_for("its health's end", lambda: server.health() != 200)
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * 6
    code, printed = server.driver.result()
    assert code == 0, printed
    assert "Traceback" not in printed
    assert KEY not in printed
