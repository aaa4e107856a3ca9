"""Requests per second and latencies of the server, beside its bare engine and beside a plain server.

python benchmarks/serve.py --model FOLDER --documents passages.jsonl --questions questions.jsonl

All on the loopback, bounded in count and time; the callers are a process of their own on the same cores.
Parts: ``saturation``, callers who never pause, against the bare engine on the same windows and against a
FastAPI server that takes one request at a time; ``latency``, requests that come by chance at shares of that
pace, and at twice of it; ``mixed``, short requests alone and beside documents of thousands of tokens.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # Ray brings it
from machine import machine, show
from peers import inputs
from peers.process import Process

from tinyqa_ray import storage
from tinyqa_ray.cluster import quiet_models
from tinyqa_ray.errors import InputError
from tinyqa_ray.recipes import bundled

SEED = 13
FOLDER = Path(__file__).parent
SHARES = (0.5, 0.8, 2.0)
"""Of saturation, at which requests come by chance."""
_START_S = 120.0
_SHORT_CHARACTERS, _LONG_CHARACTERS = 150, 16_000
"""About 40 and 4,000 tokens."""
_WARM_UP = 20

Load = dict[str, Any]


def main() -> None:
    """Measure, then print and keep the figures."""
    arguments = _arguments()
    quiet_models()
    drawn = inputs.workloads(
        arguments.documents, arguments.questions, pairs=arguments.requests, corpus_documents=1, seed=SEED
    )["pairs"]
    bodies = [{"question": question, "contexts": contexts} for question, contexts in drawn]
    figures: dict[str, Any] = {"requests": len(bodies), "clients": arguments.clients}
    with tempfile.TemporaryDirectory() as name, _callers() as callers:
        models = inputs.model_and_export(
            arguments.model, arguments.calibration, Path(name), SEED, export_it=not arguments.skip_int8
        )
        plain = _plain(arguments, models["torch fp32"], bodies, callers)
        figures["plain server"] = plain
        for precision, folder in models.items():
            engine = _engine_pace(folder, drawn, arguments)
            with _server(_ours(folder), callers) as server:
                figures[precision] = _measured(server, bodies, callers, arguments)
            pace = figures[precision]["saturation"]["requests_per_s"]
            figures[precision] |= {
                "engine_windows_per_s": engine,
                "share_of_engine": round(pace / engine, 3),
                "ratio_to_plain_server": round(pace / plain["requests_per_s"], 2),
            }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "serve", **figures, "machine": machine()})
    show("serve", figures)


def _measured(server: "Server", bodies: list[Load], callers: "Callers", arguments: Any) -> dict[str, Any]:
    """All parts, of one server."""
    found: dict[str, Any] = {}
    saturated = callers.run(server.url, bodies, kind="closed", clients=arguments.clients)
    pace = len(bodies) / saturated["seconds"]
    found["saturation"] = {"requests_per_s": round(pace, 2), **saturated}
    before = server.megabytes()
    for share in SHARES:
        count = max(1, int(arguments.seconds * pace * share))
        load = [bodies[number % len(bodies)] for number in range(count)]
        name = f"latency at {share:.0%}"
        found[name] = {
            "rate": round(pace * share, 2),
            **callers.run(server.url, load, kind="opened", rate=pace * share),
        }
        print(f"{name}: {found[name]}", file=sys.stderr)
    found["memory_mb"] = {"before": before, "after": server.megabytes()}
    found["mixed"] = _mixed(server, bodies, callers, pace, arguments)
    print(f"mixed: {found['mixed']}", file=sys.stderr)
    return found


def _mixed(
    server: "Server", bodies: list[Load], callers: "Callers", pace: float, arguments: Any
) -> dict[str, Any]:
    """Short requests alone, and beside long ones that take half of the model's time."""
    text = " ".join(body["contexts"][0] for body in bodies)
    short = [{**body, "contexts": [body["contexts"][0][:_SHORT_CHARACTERS]]} for body in bodies]
    places = range(0, len(text) - _LONG_CHARACTERS, _LONG_CHARACTERS // 3)
    long = [
        {**body, "contexts": [text[start : start + _LONG_CHARACTERS]]}
        for body, start in zip(bodies, places, strict=False)
    ]
    # As many characters a second as half of the saturated pace.
    characters = sum(len(body["contexts"][0]) for body in bodies) / len(bodies)
    long_rate = 0.5 * pace * characters / _LONG_CHARACTERS
    rate = 0.2 * pace
    count = max(50, int(arguments.seconds * rate))
    load = [short[number % len(short)] for number in range(count)]
    # Enough of them to last longer than the short ones.
    many = [long[number % len(long)] for number in range(int(3 * arguments.seconds * long_rate) + 5)]
    alone = callers.run(server.url, load, kind="opened", rate=rate)
    beside = {"url": server.url, "bodies": many, "kind": "opened", "rate": long_rate}
    mixed = callers.run(server.url, load, kind="opened", rate=rate, beside=beside)
    return {
        "short_per_s": round(rate, 2),
        "long_per_s": round(long_rate, 3),
        "alone": alone,
        "beside_long": mixed,
        "p95_ratio": round(mixed["latency_ms"]["p95"] / alone["latency_ms"]["p95"], 2),
    }


class Server:
    """A server's process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}/v1/answer"

    def megabytes(self) -> float:
        """Memory of it and all that it started, shared pages counted once a process."""
        every = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        return round(sum(each.memory_info().rss - each.memory_info().shared for each in every) / 1e6, 1)


class Callers:
    """The process of the callers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, url: str, bodies: Sequence[Load], **job: Any) -> dict[str, Any]:
        """Send requests; returns what came of them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"url": url, "bodies": list(bodies), **job}) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@contextmanager
def _callers() -> Iterator[Callers]:
    command = [sys.executable, "-m", "peers.load"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=FOLDER
    ) as process:
        yield Callers(process)
        process.kill()


def _ours(folder: str) -> list[str]:
    return ["-m", "tinyqa_ray", "serve", "--model", folder, "--port"]


@contextmanager
def _server(command: list[str], callers: Callers, *more: str) -> Iterator[Server]:
    """A server, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen([sys.executable, *command, str(port), *more], cwd=FOLDER) as process:
        server = Server(process, port)
        try:
            _wait(server)
            warm = [{"question": "Who?", "contexts": ["Ada did it. " * 20]}] * _WARM_UP
            callers.run(server.url, warm, kind="closed", clients=2)
            yield server
        finally:
            process.terminate()
            process.wait(60)


def _wait(server: Server) -> None:
    body = json.dumps({"question": "Who?", "contexts": ["Ada."]}).encode()
    request = urllib.request.Request(server.url, body, {"Content-Type": "application/json"})
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(request, timeout=10),
        ):
            return
        time.sleep(0.5)
    raise RuntimeError(f"no answer from {server.url} within {_START_S:g} s")


def _plain(arguments: argparse.Namespace, model: str, bodies: list[Load], callers: Callers) -> dict[str, Any]:
    some = bodies[: max(1, len(bodies) // 3)]
    with _server(["-m", "peers.plain_server", model], callers, str(arguments.threads)) as server:
        found = callers.run(server.url, some, kind="closed", clients=arguments.clients)
    made = {"requests_per_s": round(len(some) / found["seconds"], 2), **found}
    print(f"plain server: {made}", file=sys.stderr)
    return made


def _engine_pace(model: str, drawn: list[Any], arguments: argparse.Namespace) -> float:
    job = {"model": model, "threads": arguments.threads, "workloads": {"pairs": drawn}}
    with Process("tinyqa_engine", job) as process:
        process.ask("pairs", limit=_WARM_UP)
        reply = process.ask("pairs")
    return round(reply.pairs / reply.seconds, 2)


def _arguments() -> argparse.Namespace:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", help="local folder (bundled encoder with a random head)")
    add("--calibration", default=bundled("squad2_train.json"), help="SQuAD JSON for the int8 export")
    add("--documents", default=bundled("corpus_documents.jsonl"), help="JSONL of id, text")
    add("--questions", default=bundled("corpus_questions.jsonl"), help="JSONL of question, document_id")
    add("--requests", type=int, default=1500, help="of the part on saturation (1500)")
    add("--clients", type=int, default=16, help="callers who never pause (16)")
    add("--seconds", type=float, default=30.0, help="of each load that comes by chance (30)")
    add("--threads", type=int, default=cores, help="of the engine and the plain server (all cores)")
    add("--skip-int8", action="store_true", help="the model as it is alone")
    add("--output", help="JSON file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    random.seed(SEED)
    try:
        main()
    except InputError as error:
        sys.exit(f"serve: {error}")
