"""Files sent as forms."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

pytest.importorskip("pypdfium2", reason="needs the extra documents")
pytest.importorskip("python_multipart", reason="needs the extra documents")

from tinyqa_ray.configs import LimitConfig
from tinyqa_ray.documents import isolated, read_document
from tinyqa_ray.serve import uploads
from tinyqa_ray.serve.errors import RequestError

FILES = Path(__file__).parents[1] / "documents" / "files"
QUESTION = "Who opens the sluice?"


@pytest.fixture(scope="module")
def client(chance_api: Any, bearer: dict[str, str]) -> Iterator[TestClient]:
    with TestClient(chance_api, raise_server_exceptions=False, headers=bearer) as made:
        yield made


def sent(client: TestClient, *names: str, more: dict[str, bytes] | None = None, **fields: Any) -> Any:
    given = {**{name: (FILES / name).read_bytes() for name in names}, **(more or {})}
    files = [("files", (name, data)) for name, data in given.items()]
    return client.post("/v1/answer", files=files or [("other", (None, "x"))], data=fields)


def refused(reply: Any, status: int = 422) -> str:
    assert reply.status_code == status, reply.text
    assert reply.json().keys() == {"error", "error_type"}
    return str(reply.json()["error"])


def test_answer_from_a_pdf_says_page_boxes_and_paragraph(client: TestClient) -> None:
    name = "divided-words.pdf"
    reply = sent(client, name, question=QUESTION, no_answer="false", top_k="5")
    assert reply.status_code == 200, reply.text
    document = read_document(name, (FILES / name).read_bytes())
    answers = reply.json()["answers"]
    assert len(answers) == 5
    for each in answers:
        start, end = each["start"], each["end"]
        assert each["document_id"] == name
        assert document.text[start:end] == each["answer"]
        assert each["page"] == document.places.page(start)
        assert each["boxes"]
        first = start - each["paragraph_start"]
        assert each["paragraph"][first : first + end - start] == each["answer"]
    assert "unreadable" not in reply.json()


def test_places_in_files_and_texts_have_their_names_and_pages(client: TestClient) -> None:
    name = "divided-words.pdf"
    document = read_document(name, (FILES / name).read_bytes())
    fields = {"question": QUESTION, "contexts": ["Ada opens it."], "evidence": "true", "no_answer": "false"}
    reply = sent(client, name, **fields, top_k="all", min_score="0.0")
    assert reply.status_code == 200, reply.text
    places = [place for each in reply.json()["answers"] for place in each["places"]]
    assert {place["document_id"] for place in places} == {"0", name}
    for place in places:
        text = document.text if place["document_id"] == name else "Ada opens it."
        assert text[place["start"] : place["end"]] == place["answer"]
        assert text[place["sentence_start"] :].startswith(place["sentence"])
        assert ("page" in place) == ("boxes" in place) == (place["document_id"] == name)
        if place["document_id"] == name:
            assert place["page"] == document.places.page(place["start"])
            assert place["boxes"]
    assert "min_score: is not a number" in refused(sent(client, name, question=QUESTION, min_score="much"))
    assert "evidence: is not a true or false" in refused(
        sent(client, name, question=QUESTION, evidence="yes")
    )


def test_picture_of_the_page_comes_where_asked_for(client: TestClient) -> None:
    asked = {"question": QUESTION, "no_answer": "false"}
    drawn = sent(client, "divided-words.pdf", **asked, pictures="true").json()["answers"][0]["picture"]
    assert drawn.startswith("data:image/png;base64,")
    assert "picture" not in sent(client, "divided-words.pdf", **asked).json()["answers"][0]
    assert "picture" not in sent(client, "plain.txt", **asked, pictures="true").json()["answers"][0]


def test_files_and_texts_are_read_together(client: TestClient) -> None:
    more = {"a/b.txt": "Zoë opens it.".encode()}
    texts = {
        "contexts": ["Ada opens it."],
        "questions": [QUESTION, "Why?"],
        "no_answer": "false",
        "top_k": "9",
    }
    reply = sent(client, "page.html", "slides.pptx", more=more, **texts)
    assert reply.status_code == 200, reply.text
    assert [each["question"] for each in reply.json()["results"]] == [QUESTION, "Why?"]
    found = [answer for each in reply.json()["results"] for answer in each["answers"]]
    assert {each["document_id"] for each in found} <= {"page.html", "slides.pptx", "a/b.txt", "0"}
    assert all(("page" in each) == (each["document_id"] != "0") for each in found)
    assert reply.json()["usage"]["contexts"] == 4


@pytest.mark.parametrize("name", ["hang", "crash"])
def test_file_that_hangs_or_kills_its_process_is_named_and_the_server_goes_on(
    name: str, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmful = Path(__file__).parents[1] / "documents" / "harmful.py"
    monkeypatch.setattr(isolated, "COMMAND", (sys.executable, str(harmful)))
    isolated._end_all()
    real = uploads.DocumentLimits
    monkeypatch.setattr(
        uploads,
        "DocumentLimits",
        lambda **given: real(**{**given, "max_file_s": 2.0, "max_file_core_s": 60.0}),
    )
    reply = sent(client, "plain.txt", more={f"{name}.txt": b"x"}, question=QUESTION, no_answer="false")
    isolated._end_all()
    assert reply.status_code == 200
    assert reply.json()["answers"][0]["document_id"] == "plain.txt"
    (wrong,) = reply.json()["unreadable"]
    assert wrong["document_id"] == f"{name}.txt"
    assert wrong["error"] in (
        "the file takes longer than 2 seconds",
        "the file broke the process that read it",
    )


def test_files_after_the_time_of_a_request_are_named_as_unread() -> None:
    files = [("a.txt", b"An owl."), ("b.txt", b"A kite.")]
    with pytest.raises(RequestError, match=r"a\.txt: the file was not read, since those before it took all"):
        uploads.read_upload({"question": QUESTION}, files, LimitConfig(timeout_s=1e-9))


def test_bad_file_is_named_and_its_neighbour_is_read(client: TestClient) -> None:
    reply = sent(client, "encrypted.pdf", "plain.txt", question=QUESTION, no_answer="false")
    assert reply.status_code == 200
    assert reply.json()["answers"][0]["document_id"] == "plain.txt"
    wrong = [{"document_id": "encrypted.pdf", "error": "the file is encrypted; save it without a password"}]
    assert reply.json()["unreadable"] == wrong
    assert "encrypted.pdf: the file is encrypted" in refused(sent(client, "encrypted.pdf", question=QUESTION))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give either question or questions"),
        ({"question": QUESTION, "questions": ["Why?"]}, "give either question or questions"),
        ({"question": " "}, "the question is empty"),
        ({"question": [QUESTION, "Why?"]}, "question: comes twice, or is unknown"),
        ({"question": QUESTION, "top_k": "many"}, "top_k: is not a number"),
        ({"question": QUESTION, "top_k": "101"}, "top_k: Input should be less than or equal to 100"),
        ({"question": QUESTION, "no_answer": "1"}, "no_answer: is not a true or false"),
        ({"question": QUESTION, "files": "a text"}, "files: send files as 'files'"),
        ({"question": QUESTION, "topk": "1"}, "topk: comes twice, or is unknown; fields are question, top_k"),
    ],
)
def test_wrong_field_is_refused_in_one_line(client: TestClient, fields: dict[str, Any], words: str) -> None:
    assert words in refused(sent(client, "plain.txt", **fields))


def test_file_of_no_known_format_or_no_form_is_refused(client: TestClient) -> None:
    line = refused(sent(client, more={"a.xls": b"x"}, question=QUESTION))
    assert "a.xls: has no suffix of a document; allowed are .pdf" in line
    kind = {"Content-Type": "multipart/form-data"}
    assert "cannot be read" in refused(client.post("/v1/answer", content=b"x", headers=kind))


def test_form_from_a_page_needs_the_header_that_pages_of_other_sites_may_not_send(client: TestClient) -> None:
    files = {"files": ("a.txt", b"Ada opens it.")}
    origin = {"Origin": "http://testserver"}
    asked = {"files": files, "data": {"question": QUESTION}}
    refused(client.post("/v1/answer", headers=origin, **asked), 415)
    said = {**origin, "X-Requested-With": "tinyqa"}
    assert client.post("/v1/answer", headers=said, **asked).status_code == 200
    refused(client.post("/", headers=said, **asked), 415)


def test_json_is_answered_without_the_fields_of_files(client: TestClient) -> None:
    body = json.dumps({"question": QUESTION, "contexts": ["Ada opens it."]})
    reply = client.post("/v1/answer", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200
    assert not {"page", "boxes", "paragraph"} & reply.json()["answers"][0].keys()
