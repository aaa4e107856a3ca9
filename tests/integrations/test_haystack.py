from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when Haystack is imported
pytest.importorskip("haystack", reason="haystack-ai is not installed")

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.dataclasses import ExtractedAnswer
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.utils import ComponentDevice, DeviceMap, Secret

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.integrations import haystack as integration
from tinyqa_ray.integrations.haystack import ExtractiveReader
from tinyqa_ray.integrations.haystack_spans import Found, RunOptions, overlap, ranked
from tinyqa_ray.models import pretrained
from tinyqa_ray.reader import Reader

CONTEXTS = [row["context"] for article in tiny.squad_document()["data"] for row in article["paragraphs"]]
QUERY = "Who built the lighthouse?"
DOCUMENTS = [Document(content=context) for context in [*CONTEXTS[:3], " ".join(CONTEXTS[3:])]]
SMALL: dict[str, Any] = {"max_seq_length": 64, "stride": 16}
CPU = ComponentDevice.from_str("cpu")

CHANGED: dict[str, Any] = {
    "model": "some/model",
    "device": ComponentDevice.from_str("cuda:1"),
    "token": Secret.from_env_var("MY_TOKEN", strict=False),
    "top_k": 3,
    "score_threshold": 0.0,
    "max_seq_length": 100,
    "stride": 0,
    "max_batch_size": 7,
    "answers_per_seq": 5,
    "no_answer": False,
    "calibration_factor": 0.5,
    "overlap_threshold": None,
    "model_kwargs": {"device_map": "cpu"},
    "no_answer_score": "null",
    "precision": "fp32",
}


def answers(reader: ExtractiveReader, documents: list[Document], **options: Any) -> list[ExtractedAnswer]:
    found: list[ExtractedAnswer] = reader.run(query=QUERY, documents=documents, **options)["answers"]
    return found


def texts(found: list[ExtractedAnswer]) -> list[ExtractedAnswer]:
    """Those with a text."""
    return [answer for answer in found if answer.data is not None]


def place(answer: ExtractedAnswer) -> tuple[str, int, int] | None:
    if answer.document is None or answer.document_offset is None:
        return None
    text = answer.data or ""
    before, after = len(text) - len(text.lstrip()), len(text) - len(text.rstrip())
    return answer.document.id, answer.document_offset.start + before, answer.document_offset.end - after


def assert_same(one: list[ExtractedAnswer], two: list[ExtractedAnswer]) -> None:
    """Whether they are the same, but for white space at the ends of answers, which ours never have."""
    fields = [
        [(a.data and a.data.strip(), a.query, a.context, a.meta, place(a)) for a in found]
        for found in (one, two)
    ]
    assert fields[0] == fields[1]
    assert [a.score for a in one] == pytest.approx([a.score for a in two], abs=2e-6)


@pytest.fixture(scope="module")
def reader(tiny_roberta: str) -> ExtractiveReader:
    return ExtractiveReader(tiny_roberta, CPU, **SMALL)


def test_pipeline_answers_from_what_the_retriever_found(tiny_roberta: str) -> None:
    store = InMemoryDocumentStore()
    store.write_documents(DOCUMENTS)
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=2))
    pipeline.add_component("reader", ExtractiveReader(tiny_roberta, CPU))
    pipeline.connect("retriever.documents", "reader.documents")
    inputs = {"retriever": {"query": QUERY}, "reader": {"query": QUERY, "top_k": 4, "score_threshold": 0.0}}
    found = pipeline.run(inputs)["reader"]["answers"]
    assert 1 < len(found) <= 5
    assert {answer.query for answer in found} == {QUERY}
    assert_same(asyncio.run(pipeline.run_async(inputs))["reader"]["answers"], found)


def test_saved_pipeline_gives_the_same_answers(tiny_roberta: str) -> None:
    pipeline = Pipeline()
    pipeline.add_component("reader", ExtractiveReader(tiny_roberta, CPU, overlap_threshold=None, **SMALL))
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["tinyqa_ray"])
    inputs = {"reader": {"query": QUERY, "documents": DOCUMENTS}}
    assert_same(loaded.run(inputs)["reader"]["answers"], pipeline.run(inputs)["reader"]["answers"])
    assert loaded.to_dict() == pipeline.to_dict()


def test_no_parameter_is_lost_in_a_saved_reader() -> None:
    parameters = inspect.signature(ExtractiveReader.__init__).parameters
    assert {"self", *CHANGED} == parameters.keys()
    assert not [name for name, value in CHANGED.items() if value == parameters[name].default]
    saved = json.loads(json.dumps(ExtractiveReader(**CHANGED).to_dict()))
    loaded = ExtractiveReader.from_dict(saved)
    assert {name: getattr(loaded, name) for name in CHANGED} == CHANGED
    assert loaded.to_dict() == saved


def test_parameters_saved_by_haystacks_reader_are_taken(tiny_roberta: str) -> None:
    saved = ExtractiveReader(tiny_roberta).to_dict()
    ours = {"no_answer_score", "precision", "overlap_threshold"}
    theirs = {name: value for name, value in saved["init_parameters"].items() if name not in ours}
    theirs |= {"device": None, "model_kwargs": {"device_map": "cpu"}}
    loaded = ExtractiveReader.from_dict({"type": saved["type"], "init_parameters": theirs})
    assert_same(answers(loaded, DOCUMENTS), answers(ExtractiveReader(tiny_roberta, CPU), DOCUMENTS))


@pytest.mark.parametrize("overlap_threshold", [None, 0.0, 0.01, 0.5])
def test_text_of_an_answer_is_where_it_says(
    reader: ExtractiveReader, overlap_threshold: float | None
) -> None:
    found = answers(reader, DOCUMENTS, overlap_threshold=overlap_threshold, top_k=100)
    assert len(texts(found)) > len(DOCUMENTS)
    for answer in texts(found):
        assert answer.document is not None
        assert answer.document.content is not None
        assert answer.document_offset is not None
        span = slice(answer.document_offset.start, answer.document_offset.end)
        assert answer.document.content[span] == answer.data != ""
        assert 0 <= answer.score <= 1
    assert [a.score for a in found] == sorted((a.score for a in found), reverse=True)


def test_answers_do_not_overlap_unless_asked_to(reader: ExtractiveReader) -> None:
    def overlapping(found: list[ExtractedAnswer]) -> bool:
        spans = [place(answer) for answer in texts(found)]
        return any(
            a[0] == b[0] and a[1] < b[2] and b[1] < a[2]
            for i, a in enumerate(spans)
            for b in spans[:i]
            if a and b
        )

    assert not overlapping(answers(reader, DOCUMENTS))
    assert not overlapping(answers(reader, DOCUMENTS, overlap_threshold=0.0))
    assert overlapping(answers(reader, DOCUMENTS, overlap_threshold=None))
    # The constructor's None is kept where the run says nothing.
    reader = ExtractiveReader(reader.model, CPU, overlap_threshold=None, **SMALL)
    assert overlapping(answers(reader, DOCUMENTS))
    assert not overlapping(answers(reader, DOCUMENTS, overlap_threshold=0.0))


def test_arguments_of_a_run_count_for_it_alone(tiny_roberta: str) -> None:
    reader = ExtractiveReader(tiny_roberta, CPU, score_threshold=1.0, **SMALL)
    assert answers(reader, DOCUMENTS) == []
    everything = answers(reader, DOCUMENTS, score_threshold=None)
    assert_same(answers(reader, DOCUMENTS, score_threshold=0.0), everything)
    assert len(texts(everything)) == len(everything) - 1
    assert len(texts(answers(reader, DOCUMENTS, score_threshold=0.0, top_k=1))) == 1
    least = everything[2].score
    some = [answer for answer in everything if answer.score >= least]
    assert len(some) < len(everything)
    assert_same(answers(reader, DOCUMENTS, score_threshold=least), some)
    spans = answers(reader, DOCUMENTS, score_threshold=0.0, no_answer=False)
    assert_same(spans, texts(everything))
    assert answers(reader, DOCUMENTS) == []


def test_stride_of_zero_is_no_overlap_of_windows(reader: ExtractiveReader) -> None:
    apart = answers(reader, DOCUMENTS[-1:], stride=0)
    assert_same(
        apart, answers(ExtractiveReader(reader.model, CPU, max_seq_length=64, stride=0), DOCUMENTS[-1:])
    )
    assert [a.score for a in apart] != [a.score for a in answers(reader, DOCUMENTS[-1:])]


def test_more_candidates_give_more_answers(reader: ExtractiveReader) -> None:
    few = texts(answers(reader, DOCUMENTS, answers_per_seq=1, top_k=500))
    many = texts(answers(reader, DOCUMENTS, answers_per_seq=200, top_k=500))
    assert 0 < len(few) < len(many)
    assert place(few[0]) == place(many[0])


def test_documents_without_text_change_nothing_for_the_others(
    reader: ExtractiveReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not caplog: other libraries reconfigure logging in the process.
    said: list[str] = []
    monkeypatch.setattr(integration.logger, "warning", lambda text, *values: said.append(text % values))
    empty = [Document(content=None, id="nothing"), Document(content=""), Document(content=" \n ")]
    mixed = [empty[0], DOCUMENTS[0], empty[1], DOCUMENTS[1], empty[2], DOCUMENTS[3]]
    assert_same(answers(reader, mixed), answers(reader, [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[3]]))
    assert "document nothing has no content and is left out" in said


@pytest.mark.parametrize("content", [None, "", "  "])
@pytest.mark.parametrize("no_answer_score", ["product", "null"])
def test_without_any_text_there_is_surely_no_answer(
    tiny_roberta: str, content: str | None, no_answer_score: Any
) -> None:
    reader = ExtractiveReader(tiny_roberta, CPU, no_answer_score=no_answer_score)
    assert answers(reader, [Document(content=content)]) == [ExtractedAnswer(query=QUERY, score=1.0)]
    assert answers(reader, [Document(content=content)], no_answer=False) == []


def test_without_documents_there_are_no_answers_and_no_model_is_needed() -> None:
    assert ExtractiveReader("/no/such/model").run(query=QUERY, documents=[]) == {"answers": []}


def test_copies_of_a_document_answer_once(reader: ExtractiveReader) -> None:
    once, twice = (answers(reader, DOCUMENTS[:1] * n, no_answer=False) for n in (1, 2))
    assert_same(once, twice)


def test_no_answer_is_the_product_of_the_others_being_wrong(reader: ExtractiveReader) -> None:
    for top_k in (1, 3):
        found = answers(reader, DOCUMENTS, top_k=top_k)
        (none,) = [answer for answer in found if answer.data is None]
        assert none == ExtractedAnswer(query=QUERY, score=none.score)
        assert none.score == pytest.approx(np.prod([1 - answer.score for answer in texts(found)]))


def test_unlikely_answers_come_after_no_answer(tiny_roberta: str, tmp_path: Path) -> None:
    model = pretrained.load_qa_model(tiny_roberta)
    model.qa_outputs.bias.data -= 20
    model.save_pretrained(tmp_path)
    pretrained.load_tokenizer(tiny_roberta).save_pretrained(tmp_path)
    found = answers(ExtractiveReader(tmp_path, CPU), DOCUMENTS, top_k=3)
    assert [answer.data is None for answer in found] == [True, False, False, False]


def test_null_score_is_the_models_own_over_all_documents(tiny_bert: str) -> None:
    window = WindowConfig(max_seq_len=64, doc_stride=16, max_query_len=1)
    engine = Reader.from_pretrained(tiny_bert, device="cpu", window=window)
    chances = [engine.read([(QUERY, c)], max_answer_tokens=64)[0].na_prob for c in CONTEXTS]
    reader = ExtractiveReader(tiny_bert, CPU, no_answer_score="null", **SMALL)
    for contents, chance in [
        *((CONTEXTS[i : i + 1], chances[i]) for i in range(3)),
        (CONTEXTS, min(chances)),
    ]:
        for options in ({}, {"top_k": 1}, {"answers_per_seq": 1}):
            found = answers(reader, [Document(content=content) for content in contents], **options)
            (none,) = [answer for answer in found if answer.data is None]
            assert none.score == pytest.approx(chance, abs=1e-6)


@pytest.mark.parametrize(("page", "expected"), [(3, 2), (None, None), ("iv", None)])
def test_page_of_an_answer_counts_the_form_feeds_before_it(
    reader: ExtractiveReader, page: Any, expected: int | None
) -> None:
    content = "\f".join(CONTEXTS[:3])
    found = texts(answers(reader, [Document(content=content, meta={"page_number": page})]))
    for answer in found:
        assert answer.document_offset is not None
        turns = content[: answer.document_offset.start].count("\f")
        assert answer.meta == ({} if expected is None else {"answer_page_number": 3 + turns})
    if expected is not None:
        assert len({answer.meta["answer_page_number"] for answer in found}) >= expected
    assert texts(answers(reader, [Document(content=content)]))[0].meta == {}


def test_smaller_batches_give_the_same_answers(
    reader: ExtractiveReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(reader, DOCUMENTS)
    sizes: list[int] = []
    run = TorchEngine.run

    def watched(self: TorchEngine, windows: Any, batches: Any) -> Any:
        batches = list(batches)
        sizes.extend(len(batch) * max(windows.lengths[batch]) for batch in batches)
        return run(self, windows, batches)

    monkeypatch.setattr(TorchEngine, "run", watched)
    assert_same(answers(reader, DOCUMENTS, max_batch_size=2), expected)
    assert len(sizes) > 1
    assert max(sizes) <= 2 * 64


def test_long_query_stays_whole_or_is_refused(reader: ExtractiveReader) -> None:
    long = " ".join(["lighthouse"] * 8) + " on Gull Point?"
    one, two = (
        reader.run(query=f"{start} {long}", documents=DOCUMENTS, max_seq_length=384)["answers"]
        for start in ("Who built the", "When was it built, the")
    )
    assert [answer.score for answer in one] != [answer.score for answer in two]
    with pytest.raises(InputError, match=r"a question of [0-9]+ tokens leaves"):
        reader.run(query=long * 9, documents=DOCUMENTS)


@pytest.mark.parametrize("query", ["", " \n"])
def test_empty_query_is_refused(reader: ExtractiveReader, query: str) -> None:
    with pytest.raises(InputError, match="the query is empty"):
        reader.run(query=query, documents=DOCUMENTS)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"top_k": 0}, "top_k is 0; it must be a whole number of at least 1"),
        ({"top_k": 1.5}, r"top_k is 1\.5"),
        ({"answers_per_seq": 0}, "answers_per_seq is 0"),
        ({"max_batch_size": -1}, "max_batch_size is -1"),
        ({"max_seq_length": 0}, "max_seq_length is 0"),
        ({"stride": -1}, "stride is -1; it must be a whole number of at least 0"),
        ({"stride": 59, "max_seq_length": 64}, "stride is 59, too much of max_seq_length 64"),
        ({"score_threshold": 1.1}, r"score_threshold is 1\.1; it must lie in \[0, 1\]"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"overlap_threshold": "0.5"}, r"overlap_threshold is '0\.5'"),
        ({"overlap_threshold": -0.1}, r"overlap_threshold is -0\.1"),
    ],
)
def test_value_out_of_range_is_refused_by_name(
    reader: ExtractiveReader, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        ExtractiveReader(**options)
    with pytest.raises(InputError, match=complaint):
        answers(reader, DOCUMENTS, **options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"calibration_factor": 0.0}, r"calibration_factor is 0\.0; it must be above 0"),
        ({"calibration_factor": float("inf")}, "calibration_factor is inf"),
        ({"no_answer_score": "min"}, "no_answer_score is 'min'; it must be 'product' or 'null'"),
        ({"model_kwargs": {"dtype": "fp16", "revision": "x"}}, "model_kwargs holds dtype, revision; only"),
        ({"model_kwargs": {"device_map": {"": "cpu"}}}, "the model runs on one device"),
        (
            {"device": ComponentDevice.from_multiple(DeviceMap.from_hf({"a": 0, "b": "cpu"}))},
            "the model runs on one device",
        ),
    ],
)
def test_parameter_that_cannot_be_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        ExtractiveReader(**options)


def test_window_longer_than_the_model_reaches_is_refused(reader: ExtractiveReader) -> None:
    with pytest.raises(InputError, match=r"max_seq_len is 513, but .* reads at most 512 tokens"):
        answers(reader, DOCUMENTS, max_seq_length=513)


def test_missing_model_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(InputError, match="/no/such/model: no such model folder"):
        ExtractiveReader("/no/such/model").warm_up()


@pytest.mark.parametrize(
    ("options", "device"),
    [
        ({}, "auto"),
        ({"device": ComponentDevice.from_str("cuda:1")}, "cuda:1"),
        ({"model_kwargs": {"device_map": 2}}, "cuda:2"),
        ({"device": CPU, "model_kwargs": {"device_map": "cuda:0"}}, "cuda:0"),
    ],
)
def test_model_is_loaded_once_on_the_device_asked_for(
    options: dict[str, Any], device: str, tiny_bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []

    def load(model: str, *, device: str, precision: str) -> object:
        asked.append((model, device, precision))
        return object()

    monkeypatch.setattr(Reader, "from_pretrained", load)
    reader = ExtractiveReader(tiny_bert, precision="fp32", **options)
    assert asked == []
    reader.warm_up()
    reader.warm_up()
    assert asked == [(tiny_bert, device, "fp32")]


def test_token_fetches_a_private_model(tiny_roberta: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, *, token: str, allow_patterns: list[str]) -> str:
        asked.append((name, token))
        return tiny_roberta

    monkeypatch.setattr(integration, "snapshot_download", fetch)
    monkeypatch.setenv("MY_TOKEN", "secret")
    reader = ExtractiveReader("some/model", CPU, token=Secret.from_env_var("MY_TOKEN"))
    assert texts(answers(reader, DOCUMENTS))
    assert asked == [("some/model", "secret")]
    ExtractiveReader(tiny_roberta, CPU, token=Secret.from_env_var("MY_TOKEN")).warm_up()
    assert len(asked) == 1


def test_hub_that_gives_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str, **_: Any) -> str:
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr(integration, "snapshot_download", fetch)
    with pytest.raises(InputError, match=r"^some/model: could not be fetched \(401 Client Error\)$"):
        ExtractiveReader("some/model", token=Secret.from_token("wrong")).warm_up()


def test_import_without_haystack_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "haystack", None)
    monkeypatch.delitem(sys.modules, "tinyqa_ray.integrations.haystack")
    with pytest.raises(ImportError, match=r"pip install 'tinyqa-ray\[haystack\]'"):
        __import__("tinyqa_ray.integrations.haystack")


spans = st.builds(
    lambda logit, document, start, length: Found(logit, document, start, start + length),
    st.floats(-5, 5),
    st.integers(0, 1),
    st.integers(0, 20),
    st.integers(1, 9),
)


@settings(deadline=None)
@given(found=st.lists(spans, max_size=20), top_k=st.integers(1, 8), share=st.floats(0, 1))
def test_dropped_answers_have_a_better_one_in_their_place(
    found: list[Found], top_k: int, share: float
) -> None:
    options = RunOptions(**RUN | {"top_k": top_k, "overlap_threshold": share})
    kept = ranked(found, ["a", "b"], options)
    assert len(kept) <= top_k
    assert kept == sorted(kept, key=lambda each: -each.logit)
    for i, one in enumerate(kept):
        assert all(overlap(one, b) <= share for b in kept[:i] if b.document == one.document)
    if len(kept) < top_k:
        for one in found:
            better = [b for b in kept if b.document == one.document and b.logit >= one.logit]
            assert one in kept or any(overlap(one, b) > share for b in better)
    everything = RunOptions(**RUN | {"top_k": len(found) + 1, "overlap_threshold": None})
    assert ranked(found, ["a", "b"], everything) == sorted(found, key=lambda each: -each.logit)


RUN: dict[str, Any] = {
    "top_k": 20,
    "score_threshold": None,
    "max_seq_length": 384,
    "stride": 128,
    "max_batch_size": None,
    "answers_per_seq": None,
    "no_answer": True,
    "overlap_threshold": 0.01,
}


@pytest.fixture(scope="module", params=["roberta", "bert"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExtractiveReader, Any]:
    """Our reader and Haystack's, of one model."""
    theirs = pytest.importorskip(
        "haystack_integrations.components.readers.transformers",
        reason="transformers-haystack is not installed, or lacks accelerate",
        exc_type=ImportError,
    )
    folder = request.getfixturevalue(f"tiny_{request.param}")
    if request.param == "bert":
        # Haystack tells a BERT nothing of token types, so here they make no difference.
        model = pretrained.load_qa_model(folder)
        types = model.bert.embeddings.token_type_embeddings.weight.data
        types[1] = types[0]
        path: Path = tmp_path_factory.mktemp("typeless")
        model.save_pretrained(path)
        pretrained.load_tokenizer(folder).save_pretrained(path)
        folder = str(path)
    reader = theirs.TransformersExtractiveReader(folder, CPU, **SMALL)
    kept = reader.deduplicate_by_overlap

    def with_text(found: list[ExtractedAnswer], overlap_threshold: float | None) -> Any:
        # Haystack's also answers with spaces, and with nothing at all.
        return kept([each for each in found if each.data and each.data.strip()], overlap_threshold)

    reader.deduplicate_by_overlap = with_text
    return ExtractiveReader(folder, CPU, **SMALL), reader


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_seq_length": 384, "stride": 128},
        {"max_seq_length": 50, "stride": 30},
        {"top_k": 3},
        {"top_k": 500, "answers_per_seq": 60},
        {"answers_per_seq": 1},
        {"overlap_threshold": 0.5},
        {"overlap_threshold": 1.0},
        {"score_threshold": 0.55},
        {"no_answer": False},
        {"max_batch_size": 2},
    ],
    ids=str,
)
def test_answers_equal_those_of_haystacks_reader(
    both: tuple[ExtractiveReader, Any], options: dict[str, Any]
) -> None:
    documents = [*DOCUMENTS, Document(content="\f".join(CONTEXTS[::-1]), meta={"page_number": 5})]
    for query in (QUERY, "When do they bake?"):
        ours, theirs = (each.run(query=query, documents=documents, **options)["answers"] for each in both)
        assert len(ours) > 0
        assert_same(ours, theirs)


def test_overlapping_answers_equal_those_of_haystacks_reader(both: tuple[ExtractiveReader, Any]) -> None:
    ours, theirs = both
    theirs.overlap_threshold = None
    try:
        expected = theirs.run(query=QUERY, documents=DOCUMENTS)["answers"]
    finally:
        theirs.overlap_threshold = ours.overlap_threshold
    assert_same(answers(ours, DOCUMENTS, overlap_threshold=None), expected)
