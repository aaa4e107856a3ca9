"""Every job, submitted by ``ray job submit`` to a real cluster of this machine that asks for a token."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fire
import pytest
import tiny

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
VERSION = "0.1.0+uploaded"
"""Of the package in the checkout that is submitted: tells it from the installed one."""
WINDOW = "--max-seq-len 64 --doc-stride 16 --max-query-len 16"
HIDDEN = ("out/model/model.safetensors", "runs/x/_SUCCESS.json", ".venv/lib/a.py", ".git/HEAD", "train.json")
"""Files of the checkout that are not a job's."""


@dataclass(frozen=True)
class Job:
    """A job that has ended."""

    status: str
    message: str
    log: str
    exit_code: int
    """Of ``ray job submit``."""

    @property
    def summary(self) -> dict[str, Any]:
        """The last line of the log."""
        found: dict[str, Any] = json.loads(self.log.splitlines()[-1])
        return found


@dataclass(frozen=True)
class Cluster:
    """A cluster of one node."""

    checkout: Path
    """From which jobs are submitted."""
    temp: Path
    environment: dict[str, str]
    token: str
    gcs: str
    dashboard: str

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command of Ray's in the checkout, as its user."""
        return subprocess.run(
            [RAY, *arguments],
            cwd=self.checkout,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=fire.DEADLINE_S,
        )

    def submitted(self, name: str, line: str, submission: str) -> list[str]:
        """The arguments of ``ray`` that submit ``jobs/NAME.py`` with the options of ``line``."""
        options = ["--working-dir", ".", "--runtime-env", str(self.temp / "environment.yaml")]
        how = ["--address", self.dashboard, "--submission-id", submission, *options]
        return ["job", "submit", *how, "--", "python", f"jobs/{name}.py", *line.split()]

    def run(self, name: str, line: str, submission: str = "") -> Job:
        """Submit a job, wait for it, and ask the cluster what became of it."""
        submission = submission or name
        done = self.ray(*self.submitted(name, line, submission))
        print(done.stdout)
        about = json.loads(self.get(f"/api/jobs/{submission}"))
        log = json.loads(self.get(f"/api/jobs/{submission}/logs"))["logs"]
        return Job(about["status"], about["message"], log, done.returncode)

    def get(self, path: str, token: str | None = "") -> bytes:
        """An answer of the dashboard; ``token`` is the cluster's unless another one or None is given."""
        request = urllib.request.Request(self.dashboard + path)
        if token is not None:
            request.add_header("Authorization", f"Bearer {token or self.token}")
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: bytes = answer.read()
            return found


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def make_checkout(folder: Path) -> Path:
    """What a user has: this repository, and files that are no concern of a job's."""
    for name in ("tinyqa_ray", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".gitignore", ".rayignore", "README.md"):
        shutil.copy(ROOT / name, folder)
    for name in HIDDEN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not for a job")
    package = folder / "tinyqa_ray" / "__init__.py"
    text = package.read_text()
    assert '__version__ = "0.1.0"' in text
    package.write_text(text.replace('__version__ = "0.1.0"', f'__version__ = "{VERSION}"'))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Not below pytest's folder, whose path is too long for Ray's sockets.
    temp = Path(tempfile.mkdtemp(prefix="jobs"))
    foreign = ("RAY_", "HF_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    gcs, dashboard, agent, metrics, client = free_ports(5)
    (temp / "token").write_text(secrets.token_hex(32))
    found = Cluster(
        checkout=make_checkout(tmp_path_factory.mktemp("checkout")),
        temp=temp,
        environment={
            **kept,
            # A job's "python" is the cluster's.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(temp / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        token=(temp / "token").read_text(),
        gcs=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
    )
    variables = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    (temp / "environment.yaml").write_text(json.dumps({"env_vars": variables}))
    options = {
        "port": gcs,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "temp-dir": temp,
        # More than two, or an actor would starve the tasks that feed it.
        "num-cpus": 4,
        "object-store-memory": 300_000_000,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    try:
        with fire.Driver(RAY, "start", "--head", "--block", *words, environment=found.environment) as driver:

            def answers() -> bool:
                assert driver.process.poll() is None, driver.result()
                with contextlib.suppress(OSError):
                    return bool(found.get("/api/version"))
                return False

            fire.wait_for("the cluster's dashboard", answers, 90)
            yield found
    finally:
        shutil.rmtree(temp, ignore_errors=True)



def test_a(cluster, tiny_squad, tiny_bert, tmp_path):
    import time
    def go(*a):
        t=time.time(); j=cluster.run(*a); print("TIME", a[0], time.time()-t, j.status, j.exit_code); return j
    run=tmp_path/"run"
    go("augment", f"--data {tiny_squad} --embeddings {tiny_bert} --copies 2 --output {run}/augmented")
    go("augment", f"--data {tiny_squad} --embeddings {tiny_bert} --copies 2 --output {run}/augmented", "augment2")
    go("augment", f"--data {tiny_squad} --embeddings {tiny_bert} --copes 2 --output {run}/x", "aug3")
    go("augment", f"--data absent.json --embeddings {tiny_bert} --output {run}/x", "aug4")
    go("teacher_logits", f"--data {tiny_squad} --tokenizer {tiny_bert} {WINDOW} --output {run}/windows")
    go("distill", f"--data {run}/windows --student {tiny_bert} --objective labels --epochs 1 --batch-size 8 --learning-rate 3e-4 --attention-dropout 0 --output {run}/teacher")
    go("evaluate", f"--data {tiny_squad} --model {run}/teacher/model {WINDOW} --output {run}/ev")
    (tmp_path/"d.jsonl").write_text(json.dumps({"id":"d","text":"The bridge was built in 1871 by Edith Marlow."}))
    (tmp_path/"q.jsonl").write_text(json.dumps({"id":"q","question":"Who built the bridge?"}))
    go("answer", f"--documents {tmp_path}/d.jsonl --questions {tmp_path}/q.jsonl --model {run}/teacher/model {WINDOW} --output {run}/an")
    go("pipeline", f"--recipe quickstart --teacher {tiny_bert} --data {tiny_squad} --dev {tiny_squad} {WINDOW} --epochs 1 --output {run}2")
    for p in cluster.temp.glob("session_latest/runtime_resources/working_dir_files/*"):
        print(p, sorted(str(x.relative_to(p)) for x in p.rglob("*") if x.is_file())[:8])
    import subprocess
    for env in ({"RAY_AUTH_TOKEN":"wrong"},{"RAY_AUTH_MODE":"disabled"}):
        t=time.time(); d=cluster.ray(*cluster.submitted("augment","--help","bad"), **env); print("TIME", env, time.time()-t, d.returncode, d.stdout)
        t=time.time(); 
        d=subprocess.run([sys.executable,"-c",f"import ray; ray.init({cluster.gcs!r}); print(ray.cluster_resources())"],env={**cluster.environment,**env,'RAY_NUM_REDIS_GET_RETRIES':'1'},stdout=-1,stderr=subprocess.STDOUT,text=True); print("TIME init", env, time.time()-t, d.returncode, d.stdout[-3000:])
    d=subprocess.run([sys.executable,"-c",f"import ray; ray.init({cluster.gcs!r}); print(ray.cluster_resources())"],env={**cluster.environment},stdout=-1,stderr=subprocess.STDOUT,text=True); print("TIME init", time.time()-t, d.returncode, d.stdout[-3000:])
