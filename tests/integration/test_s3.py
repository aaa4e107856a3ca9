"""The store of a cluster: documents, questions, index and answers on an S3 server."""

from __future__ import annotations

import contextlib
import json
import signal
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fire
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import tiny

from tinyqa_ray.answer import answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, WindowConfig
from tinyqa_ray.core import storage

DOCUMENTS = [
    {"id": f"d{i}.txt", "text": paragraph["context"]}
    for i, paragraph in enumerate(
        p for article in tiny.squad_document()["data"] for p in article["paragraphs"]
    )
]
ASKED = ["Who built the lighthouse?", "What did they burn?", "How long is the river?"]
ROUTED = [
    {"id": f"q{i}", "question": question, "document_id": f"d{i % len(DOCUMENTS)}.txt"}
    for i, question in enumerate(ASKED * 5)
]


@pytest.fixture
def config(tiny_bert: str, tmp_path: Path) -> AnswerConfig:
    """Local files; each question of its own document."""
    for name, rows in (("documents", DOCUMENTS), ("questions", ROUTED)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return AnswerConfig(
        model=tiny_bert,
        documents=str(tmp_path / "documents.jsonl"),
        questions=str(tmp_path / "questions.jsonl"),
        window=WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20),
        rows_per_shard=2,
        threads=1,
        jsonl=True,
    )


@pytest.fixture
def url(bucket: str) -> str:
    """A folder of the store that no other test uses."""
    return f"{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def _no_ray(here: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "connected", contextlib.nullcontext)


def uploaded(config: AnswerConfig, url: str, suffix: str) -> AnswerConfig:
    """The same on the store, with documents of another format."""
    table = pa.Table.from_pylist(DOCUMENTS)
    documents = f"{url}/documents{suffix}"
    match suffix:
        case ".parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(table, sink)
            storage.write_atomic(documents, sink.getvalue().to_pybytes())
        case ".csv":
            sink = pa.BufferOutputStream()
            pacsv.write_csv(table, sink)
            storage.write_atomic(documents, sink.getvalue().to_pybytes())
        case ".txt":
            documents = f"{url}/texts"
            for row in DOCUMENTS:
                storage.write_atomic(f"{documents}/{row['id']}", row["text"].encode())
        case _:
            storage.write_atomic(documents, Path(str(config.documents)).read_bytes())
    storage.write_atomic(f"{url}/questions.jsonl", Path(str(config.questions)).read_bytes())
    return replace(config, documents=documents, questions=f"{url}/questions.jsonl")


def data(output: str) -> dict[str, bytes]:
    """The data files below ``output``, by their names there."""
    files = storage.list_files(output, recursive=True)
    return {
        file[len(output) :]: storage.read_bytes(file)
        for file in files
        if file.endswith((".parquet", ".jsonl"))
    }


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".txt"])
def test_corpus_on_a_store_is_answered_as_on_a_disk(
    config: AnswerConfig, url: str, tmp_path: Path, suffix: str
) -> None:
    report = answer(config, str(tmp_path / "out"))
    found = answer(uploaded(config, url, suffix), f"{url}/out")
    assert data(f"{url}/out") == data(str(tmp_path / "out"))
    assert found == report
    assert report.answered + report.unanswered == len(ROUTED)


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize("candidates", [0, 3])
def test_run_on_a_store_goes_on_after_any_object(
    config: AnswerConfig,
    url: str,
    tmp_path: Path,
    run_with_kills: Callable[[Callable[[], Any], Sequence[int]], int],
    candidates: int,
) -> None:
    questions = tmp_path / "free.jsonl"
    questions.write_text("\n".join(json.dumps({"id": text, "question": text}) for text in ASKED))
    config = replace(config, questions=str(questions), selection=CandidateConfig(candidates=candidates))
    answer(config, str(tmp_path / "out"))
    remote = uploaded(config, url, ".jsonl")
    if candidates:
        remote = replace(remote, index=f"{url}/index")
    kills = run_with_kills(lambda: answer(remote, f"{url}/out"), (1, 3, 6, 1000))
    assert kills == 3
    assert data(f"{url}/out") == data(str(tmp_path / "out"))


def _shards(url: str) -> Iterator[str]:
    return iter(storage.list_files(f"{url}/out/answers", ".parquet"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
@pytest.mark.usefixtures("_no_ray")
def test_command_killed_on_a_store_goes_on_to_the_same_answers(
    config: AnswerConfig, url: str, tmp_path: Path
) -> None:
    config = replace(config, rows_per_shard=1)
    answer(config, str(tmp_path / "out"))
    remote = uploaded(config, url, ".jsonl")
    window = ["--max-seq-len", "48", "--doc-stride", "8", "--max-query-len", "20"]
    command = [
        *["-m", "tinyqa_ray", "answer", "--model", config.model, "--jsonl", "True", "--threads", "1"],
        *["--documents", str(remote.documents), "--questions", str(remote.questions)],
        *[*window, "--rows-per-shard", "1", "--actors", "1", "--output", f"{url}/out"],
    ]
    with fire.Driver(*command) as driver:
        fire.wait_for("a first shard in the store", lambda: any(_shards(url)), 100)
        driver.kill_all()
        assert driver.result()[0] == -signal.SIGKILL
    kept = set(_shards(url))
    assert storage.kind(f"{url}/out/_SUCCESS.json") == "absent"
    with fire.Driver(*command) as driver:
        code, printed = driver.result()
    assert code == 0, printed
    assert kept < set(_shards(url))
    assert data(f"{url}/out") == data(str(tmp_path / "out"))
