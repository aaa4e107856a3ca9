"""Servers and their callers, each a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # Ray brings it

FOLDER = Path(__file__).parent.parent
_START_S = 120.0
_WARM_UP = 40

Load = dict[str, Any]


class Server:
    """A server's process."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}/v1/answer"

    def megabytes(self) -> float:
        """Memory of it and all that it started, shared pages counted once a process."""
        every = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        taken: int = sum(each.memory_info().rss - each.memory_info().shared for each in every)
        return round(taken / 1e6, 1)


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
def callers() -> Iterator[Callers]:
    command = [sys.executable, "-m", "peers.load"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=FOLDER
    ) as process:
        yield Callers(process)
        process.kill()


@contextmanager
def served(
    command: list[str], calling: Callers, *more: str, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """A server that is told its port after ``command``, once it answers; warmed up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {**os.environ, **(environment or {})}
    with subprocess.Popen([sys.executable, *command, str(port), *more], cwd=FOLDER, env=given) as process:
        server = Server(process, port)
        try:
            _wait(server)
            warm = [{"question": "Who?", "contexts": ["Ada did it. " * 20]}] * _WARM_UP
            calling.run(server.url, warm, kind="closed", clients=2)
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
