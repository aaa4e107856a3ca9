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

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
    # A busy machine takes long to start a cluster and a job's process.
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
VERSION = "0.2.0+uploaded"
"""Of the package in the checkout that is submitted: tells it from the installed one."""
WINDOW = "--max-seq-len 64 --doc-stride 16 --max-query-len 16"
HIDDEN = ("out/model/model.safetensors", "runs/x/_SUCCESS.json", ".venv/lib/a.py", ".git/HEAD", "train.json")
"""Files of the checkout that are not a job's."""
STRANGERS = [
    pytest.param({"RAY_AUTH_TOKEN": "wrong"}, id="wrong-token"),
    pytest.param({"RAY_AUTH_MODE": "disabled"}, id="no-token"),
]
"""What the environment of someone without the cluster's token may hold."""


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
    package = folder / "tinyqa_ray" / "core" / "version.py"
    text = package.read_text()
    assert '__version__ = "0.2.0"' in text
    package.write_text(text.replace('__version__ = "0.2.0"', f'__version__ = "{VERSION}"'))
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


def connect(cluster: Cluster, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a driver that connects to the cluster from outside of a job."""
    return subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init({cluster.gcs!r}); print('came in')"],
        env={**cluster.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def given(cluster: Cluster, name: str, text: dict[str, str]) -> Path:
    """A JSONL file of one record, where every job can read it."""
    path = cluster.temp / f"{name}.jsonl"
    path.write_text(json.dumps(text))
    return path


def assert_succeeded(job: Job, stage: str, output: Path | str, **figures: Any) -> None:
    """The job's status, its exit code, and what its last line says."""
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0), job.log
    expected = {"stage": stage, "output": str(output), "was_finished": False, **figures}
    assert {name: job.summary.get(name) for name in expected} == expected


def assert_refused(job: Job, mistake: str) -> None:
    """That the job failed by a user's mistake, said in one line."""
    assert job.status == "FAILED"
    assert job.exit_code != 0
    assert "exit code 2" in job.message
    assert "Traceback" not in job.log
    (line,) = (line for line in job.log.splitlines() if line.startswith("tinyqa: "))
    assert mistake in line


@pytest.fixture(scope="module")
def recipe(cluster: Cluster) -> Path:
    """The folder of a run whose stages are made by jobs of their own, until the pipeline goes on with it."""
    return cluster.temp / "recipe"


@pytest.fixture(scope="module")
def augmented(cluster: Cluster, recipe: Path, tiny_squad: str, tiny_bert: str) -> tuple[str, Job]:
    """The options of a job of augmentation, and what became of it."""
    how = "--copies 1 --rows-per-shard 32"
    line = f"--data {tiny_squad} --embeddings {tiny_bert} {how} --output {recipe}/augmented"
    return line, cluster.run("augment", line)


@pytest.fixture(scope="module")
def windowed(cluster: Cluster, recipe: Path, tiny_squad: str, tiny_bert: str) -> Job:
    """A job that has made windows."""
    line = f"--data {tiny_squad} --tokenizer {tiny_bert} {WINDOW} --output {recipe}/windows"
    return cluster.run("teacher_logits", line)


@pytest.fixture(scope="module")
def taught(cluster: Cluster, recipe: Path, tiny_bert: str, windowed: Job) -> Job:
    """A job that has trained a model on those windows."""
    assert windowed.status == "SUCCEEDED", windowed.log
    how = "--objective labels --epochs 0.3 --batch-size 8 --learning-rate 3e-4 --attention-dropout 0"
    line = f"--data {recipe}/windows --student {tiny_bert} {how} --output {recipe}/teacher"
    return cluster.run("distill", line)


def test_augment_job_ends_with_its_summary(recipe: Path, augmented: tuple[str, Job]) -> None:
    _, job = augmented
    # Each of the eight paragraphs, and a copy of it.
    assert_succeeded(job, "augment", recipe / "augmented", paragraphs=8, copies=16, questions=48)


def test_job_submitted_again_says_that_it_was_finished(
    cluster: Cluster, recipe: Path, augmented: tuple[str, Job]
) -> None:
    line, first = augmented
    marker = recipe / "augmented" / "_SUCCESS.json"
    before = marker.read_bytes()
    again = cluster.run("augment", line, "augment-again")
    assert (again.status, again.exit_code) == ("SUCCEEDED", 0), again.log
    assert again.summary == {**first.summary, "was_finished": True}
    assert "was finished, nothing is left to do" in again.log
    assert marker.read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("augmented")
def test_job_runs_the_uploaded_package(recipe: Path) -> None:
    # The marker also names the version of the package that wrote it.
    marker = json.loads((recipe / "augmented" / "_SUCCESS.json").read_text())
    assert marker["versions"]["tinyqa-ray"] == VERSION


@pytest.mark.usefixtures("augmented")
def test_upload_holds_the_jobs_and_the_package_alone(cluster: Cluster) -> None:
    (upload,) = cluster.temp.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*/")
    found = {str(path.relative_to(upload)) for path in upload.rglob("*") if path.is_file()}
    assert {path.partition("/")[0] for path in found} == {"jobs", "tinyqa_ray"}
    assert found.isdisjoint(HIDDEN)
    assert {"jobs/augment.py", "tinyqa_ray/cli/main.py", "tinyqa_ray/assets/squad2_train.json"} <= found


@pytest.mark.slow
def test_teacher_logits_job_ends_with_its_summary(recipe: Path, windowed: Job) -> None:
    assert_succeeded(windowed, "teacher-logits", recipe / "windows", paragraphs=8, questions=24)
    assert windowed.summary["windows"] >= 24


@pytest.mark.slow
def test_distill_job_ends_with_its_summary(recipe: Path, taught: Job) -> None:
    assert_succeeded(taught, "distill", recipe / "teacher")
    assert taught.summary["published_step"] == taught.summary["steps"] > 0
    assert (recipe / "teacher" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_evaluate_job_ends_with_its_summary(cluster: Cluster, tiny_squad: str, tiny_bert: str) -> None:
    output = cluster.temp / "evaluation"
    line = f"--data {tiny_squad} --model {tiny_bert} {WINDOW} --output {output}"
    assert_succeeded(cluster.run("evaluate", line), "evaluate", output, questions=24)


@pytest.mark.slow
def test_answer_job_ends_with_its_summary(cluster: Cluster, tiny_bert: str) -> None:
    documents = given(cluster, "documents", {"id": "d", "text": "Edith Marlow built the bridge in 1871."})
    questions = given(cluster, "questions", {"id": "q", "question": "Who built the bridge?"})
    output = cluster.temp / "answers"
    line = f"--documents {documents} --questions {questions} --model {tiny_bert} {WINDOW} --output {output}"
    job = cluster.run("answer", line)
    assert_succeeded(job, "answer", output, documents=1, questions=1, errors=0)
    assert job.summary["answered"] + job.summary["unanswered"] == 1


@pytest.mark.slow
def test_pipeline_job_goes_on_where_jobs_of_single_stages_ended(
    cluster: Cluster,
    recipe: Path,
    tiny_squad: str,
    tiny_bert: str,
    augmented: tuple[str, Job],
    windowed: Job,
    taught: Job,
) -> None:
    stages = {"windows": True, "teacher": True, "augmented": True, "teacher-logits": False}
    data = f"--teacher {tiny_bert} --data {tiny_squad} --teacher.dev None"
    how = f"--stage {' '.join(stages)} --teacher.epochs 0.3 {WINDOW}"
    job = cluster.run("pipeline", f"--recipe quickstart {data} {how} --output {recipe}")
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0), job.log
    assert job.summary.keys() == {"recipe", "output", "stages"}
    assert (job.summary["recipe"], job.summary["output"]) == ("quickstart", str(recipe))
    found = [(each["stage"], each["output"], each["was_finished"]) for each in job.summary["stages"]]
    assert found == [(name, str(recipe / name), was_finished) for name, was_finished in stages.items()]
    *earlier, logits = job.summary["stages"]
    for reported, single in zip(earlier, (windowed, taught, augmented[1]), strict=True):
        # A recipe's stage has a name of its own.
        assert {**reported, "stage": "", "seconds": 0, "was_finished": False} == {
            **single.summary,
            "stage": "",
            "seconds": 0,
        }
    assert logits["questions"] == augmented[1].summary["questions"]


@pytest.mark.slow
def test_unknown_option_fails_the_job_in_one_line(cluster: Cluster, tiny_squad: str, tiny_bert: str) -> None:
    line = f"--data {tiny_squad} --embeddings {tiny_bert} --copes 2 --output {cluster.temp}/none"
    assert_refused(cluster.run("augment", line, "misspelt"), "--copes")


@pytest.mark.slow
def test_missing_file_fails_the_job_in_one_line(cluster: Cluster, tiny_bert: str) -> None:
    line = f"--data absent.json --embeddings {tiny_bert} --output {cluster.temp}/none"
    assert_refused(cluster.run("augment", line, "absent"), "absent.json")


@pytest.mark.parametrize("stranger", STRANGERS)
def test_job_without_the_token_is_refused(cluster: Cluster, stranger: dict[str, str]) -> None:
    done = cluster.ray(*cluster.submitted("augment", "--help", "stranger"), **stranger)
    assert done.returncode != 0
    assert "AuthenticationError" in done.stdout
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.get("/api/jobs/stranger")
    assert refused.value.code == 404


@pytest.mark.parametrize(("token", "code"), [("wrong", 403), (None, 401)])
def test_dashboard_tells_nothing_without_the_token(cluster: Cluster, token: str | None, code: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        cluster.get("/api/jobs/", token)
    assert refused.value.code == code


@pytest.mark.slow
@pytest.mark.parametrize("stranger", STRANGERS)
def test_driver_without_the_token_is_refused(cluster: Cluster, stranger: dict[str, str]) -> None:
    # Ray would ask twenty times, a second apart.
    done = connect(cluster, {**stranger, "RAY_NUM_REDIS_GET_RETRIES": "2"})
    assert done.returncode != 0
    assert "AuthenticationError" in done.stdout
    assert "came in" not in done.stdout


@pytest.mark.slow
def test_driver_with_the_token_is_let_in(cluster: Cluster) -> None:
    done = connect(cluster, {})
    assert done.returncode == 0, done.stdout
    assert "came in" in done.stdout
