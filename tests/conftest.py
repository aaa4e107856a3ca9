from __future__ import annotations

import os

# Ray and the hub client read these when they are imported. Ray 2.60 would otherwise turn token
# authentication on in the whole process and write a token into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray's workers would otherwise wait for every other process, such as the rest of the suite.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Which engine is the fastest depends on the machine; the tests of the choice take this away.
os.environ["TINYQA_ENGINE"] = "torch-fp32"

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import tiny

from tinyqa_ray.core import processor, said, shards, storage

pytest_plugins = ["window_fixtures"]

# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random BERT for question answering."""
    return tiny.save_qa_model(tmp_path_factory.mktemp("models") / "bert", "bert")


@pytest.fixture(scope="session")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random RoBERTa for question answering."""
    return tiny.save_qa_model(tmp_path_factory.mktemp("models") / "roberta", "roberta")


@pytest.fixture(scope="session")
def tiny_squad(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SQuAD 2.0 file of 8 paragraphs and 24 questions."""
    return tiny.write_squad(tmp_path_factory.mktemp("squad") / "tiny.json")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of four logical CPUs; tests that use it are marked ``ray``."""
    import ray

    ray.init("local", num_cpus=4, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of a bucket on an S3 server of this process, which its children reach too."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="tinyqa")
        yield "s3://tinyqa"
    server.stop()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Shards are worked in this process, without Ray; the list names those worked."""
    worked: list[str] = []

    def work_all(
        todo: Sequence[shards.Shard], mapper: Callable[..., Any], options: dict[str, Any], _: Any
    ) -> Iterator[int]:
        made = mapper(**options)
        for shard in todo:
            shards.work(shard, made)
            worked.append(shard.target)
            yield shard.rows if shard.units is None else shard.units

    monkeypatch.setattr(shards, "_worked", work_all)
    return worked


class _Killed(BaseException):
    pass


@pytest.fixture
def run_with_kills(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any], Sequence[int]], int]:
    """Runs something until it ends, and counts how often it was killed.

    Each time it may write so many files; the next one kills it.
    """

    def run(work: Callable[[], Any], allowed: Sequence[int]) -> int:
        write, left = storage.write_atomic, 0

        def write_some(path: str, data: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise _Killed
            write(path, data)

        monkeypatch.setattr(storage, "write_atomic", write_some)
        for kills, files in enumerate(allowed):
            left = files
            with contextlib.suppress(_Killed):
                work()
                return kills
        pytest.fail(f"it had not ended after {len(allowed)} times")

    return run


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the processor these features and no others. Emulated bf16 is slow, but not in tiny models."""

    def pretend(*features: str) -> None:
        monkeypatch.setattr(processor, "features", lambda: frozenset(features))
        said.say_once.cache_clear()

    return pretend


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models and golden answers beside the repository."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder
