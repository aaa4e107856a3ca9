"""The MCP server, asked by the SDK's own client: in the process, over stdio, and over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")
pytest.importorskip("pypdfium2", reason="needs the extra documents")

from mcp import Client, StdioServerParameters

from tinyqa_ray.answer import answer
from tinyqa_ray.answer import work as module
from tinyqa_ray.configs import AnswerConfig, CandidateConfig, McpConfig, WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus.indexed import Passage
from tinyqa_ray.documents import Places, read_document
from tinyqa_ray.integrations import mcp
from tinyqa_ray.integrations.library import Library
from tinyqa_ray.reader import Reader

FILES = Path(__file__).parents[1] / "documents" / "files"
QUESTION = "Who opens the sluice?"
TEXTS = ["Owls hunt at night.", "Ines Adair opens the sluice at six."]


@pytest.fixture(scope="module")
def model(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model, which never abstains."""
    folder = tmp_path_factory.mktemp("mcp") / "model"
    shutil.copytree(tiny_bert, folder)
    (folder / "tinyqa.json").write_text(json.dumps({"no_answer_threshold": 1.0}))
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = tmp_path_factory.mktemp("files")
    for name in ("divided-words.pdf", "slides.pptx", "encrypted.pdf"):
        shutil.copy(FILES / name, made / name)
    return str(made)


@pytest.fixture
def outputs(model: str, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An index and answers of ``tinyqa answer``."""
    monkeypatch.setattr(module, "connected", contextlib.nullcontext)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": QUESTION}) + "\n" + json.dumps({"question": "Why owls?"}))
    config = AnswerConfig(
        model=model,
        documents=f"{FILES}/*.pdf",
        questions=str(questions),
        selection=CandidateConfig(candidates=5, passage_words=40, passage_overlap=10),
        index=str(tmp_path / "index"),
        window=WindowConfig(max_seq_len=48, doc_stride=8, max_query_len=20),
        top_k=3,
        threads=1,
    )
    answer(config, str(tmp_path / "answers"))
    return {"index": str(tmp_path / "index"), "answers": str(tmp_path / "answers")}


def asked(server: Any, *calls: tuple[str, dict[str, Any]]) -> tuple[list[str], list[Any]]:
    """Names of the tools, and the results of calls; those of failed calls are their words."""

    async def ask() -> tuple[list[str], list[Any]]:
        async with Client(server) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            replies = [await client.call_tool(*call) for call in calls]
        return tools, [
            reply.content[0].text if reply.is_error else reply.structured_content for reply in replies
        ]

    return asyncio.run(ask())


def test_texts_are_answered_as_by_the_reader(model: str) -> None:
    library = Library(McpConfig(model=model))
    tools, (found,) = asked(
        mcp.server(library), ("ask_texts", {"question": QUESTION, "texts": TEXTS, "top_k": 2})
    )
    assert tools == ["ask_texts"]
    wanted = Reader.from_pretrained(model).evidence(QUESTION, TEXTS, top_k=2)
    assert [(each["answer"], each["score"], len(each["places"])) for each in found["answers"]] == [
        (each.answer, pytest.approx(each.score), len(each.places)) for each in wanted
    ]
    for place in (place for each in found["answers"] for place in each["places"]):
        text = TEXTS[int(place["document"])]
        assert text[place["start"] : place["end"]]
        assert place["passage"] == text


def test_answer_that_several_texts_give_is_one_with_its_places(model: str) -> None:
    text = TEXTS[0]
    library = Library(McpConfig(model=model))
    once, thrice = (library.ask_texts(QUESTION, [text] * times, 99).answers for times in (1, 3))
    assert {each.answer: 3 * len(each.places) for each in once} == {
        each.answer: len(each.places) for each in thrice
    }
    assert {place.document for each in thrice for place in each.places} == {"0", "1", "2"}


def test_place_that_two_passages_show_counts_once(model: str) -> None:
    library = Library(McpConfig(model=model))
    twice = [Passage(document_id="d", text=TEXTS[0], start=0, places=Places(()))] * 2
    both, alone = (library._asked(QUESTION, given, 9).answers for given in (twice, twice[:1]))
    assert [each.places for each in both] == [each.places for each in alone]
    assert [each.score for each in both] == pytest.approx([each.score for each in alone], abs=1e-5)


def test_texts_without_an_answer_give_none(tiny_bert: str) -> None:
    settings = {"no_answer_threshold": 0.0}
    library = Library(McpConfig(model=tiny_bert))
    library.reader = Reader.from_pretrained(tiny_bert)
    library.reader.settings = type(library.reader.settings)(**settings)
    found = library.ask_texts(QUESTION, TEXTS)
    assert found.answers == []
    assert 0 < found.no_answer <= 1


def test_mistake_is_told_to_the_caller(model: str, folder: str) -> None:
    library = Library(McpConfig(model=model, files=folder))
    _, replies = asked(
        mcp.server(library),
        ("ask_texts", {"question": " ", "texts": TEXTS}),
        ("ask_texts", {"question": QUESTION, "texts": TEXTS, "top_k": 0}),
        ("ask_files", {"question": QUESTION, "paths": ["../a.pdf", "/etc/passwd", "no.pdf"]}),
    )
    assert "the question is empty" in replies[0]
    assert "top_k is 0" in replies[1]
    assert [each["error"].partition(": ")[2] for each in replies[2]["unreadable"]] == [
        "is outside of the folder whose files may be asked",
        "is outside of the folder whose files may be asked",
        "no such file",
    ]
    with pytest.raises(InputError, match="no such folder"):
        Library(McpConfig(model=model, files=f"{folder}/none"))


def test_link_out_of_the_folder_is_not_followed(model: str, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The secret is 7.")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "a.txt").symlink_to(tmp_path / "secret.txt")
    library = Library(McpConfig(model=model, files=str(tmp_path / "open")))
    found = library.ask_files("What is the secret?", ["a.txt"])
    assert found.answers == []
    assert "is outside of the folder" in found.unreadable[0].error


def test_indexed_and_answered_corpora_are_asked(model: str, outputs: dict[str, str]) -> None:
    library = Library(McpConfig(model=model, candidates=4, **outputs))
    tools, (found, known, none) = asked(
        mcp.server(library),
        ("ask_corpus", {"question": QUESTION, "top_k": 3}),
        ("find_answers", {"words": "sluice opens"}),
        ("find_answers", {"words": "zebra"}),
    )
    assert tools == ["ask_texts", "ask_corpus", "find_answers"]
    assert found["answers"]
    for place in (place for each in found["answers"] for place in each["places"]):
        document = read_document("a.pdf", (FILES / place["document"]).read_bytes())
        assert document.text[place["start"] : place["end"]] in place["passage"]
        assert place["page"] == document.places.page(place["start"])
        assert place["boxes"][0]["page"] == place["page"]
    rows = pads.dataset(f"{outputs['answers']}/answers").to_table().to_pylist()
    wanted = [row for row in rows if row["question"] == QUESTION and row["answer"]]
    (only,) = known["result"]
    assert only["question"] == QUESTION
    assert [(each["answer"], each["places"][0]["page"]) for each in only["answers"]] == [
        (row["answer"], row["page"]) for row in sorted(wanted, key=lambda row: row["rank"])
    ]
    assert none["result"] == []
    with pytest.raises(InputError, match="was made by"):
        Library(McpConfig(model=model, index=outputs["answers"]))


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "TINYQA_API_KEY": ""}


def test_client_asks_files_over_stdio(model: str, folder: str) -> None:
    words = ["-m", "tinyqa_ray", "mcp", "--model", model, "--files", folder]
    server = StdioServerParameters(command=sys.executable, args=words, env=environment())
    paths = ["divided-words.pdf", "slides.pptx", "encrypted.pdf"]
    tools, (found,) = asked(server, ("ask_files", {"question": QUESTION, "paths": paths, "top_k": 9}))
    assert tools == ["ask_texts", "ask_files"]
    assert found["unreadable"] == [
        {"document": "encrypted.pdf", "error": "the file is encrypted; save it without a password"}
    ]
    assert found["answers"]
    for place in (place for each in found["answers"] for place in each["places"]):
        document = read_document(place["document"], (FILES / place["document"]).read_bytes())
        assert document.text[place["start"] : place["end"]] in place["passage"]
        assert place["page"] == document.places.page(place["start"])


@pytest.fixture
def url(model: str) -> Iterator[str]:
    """A server over HTTP with the key 'sesame'."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "tinyqa_ray", "mcp", "--model", model, "--transport", "http"]
    process = subprocess.Popen(
        [*words, "--port", str(port)], env={**environment(), "TINYQA_API_KEY": "sesame"}
    )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(20)


def test_client_asks_over_http_with_the_key_alone(url: str) -> None:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def ask() -> Any:
        headers = {"Authorization": "Bearer sesame"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=60) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            return await client.call_tool("ask_texts", {"question": QUESTION, "texts": TEXTS})

    found = asyncio.run(ask()).structured_content
    assert found["answers"][0]["places"][0]["document"] in ("0", "1")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, data=b"{}"), timeout=20)
    assert refused.value.code == 401


def test_open_host_without_a_key_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(mcp.KEY, raising=False)
    with pytest.raises(InputError, match="set a key in TINYQA_API_KEY"):
        mcp.run(McpConfig(model=model), "http", host="0.0.0.0")
