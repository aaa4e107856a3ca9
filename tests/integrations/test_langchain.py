from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core", reason="needs the extra langchain")

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.integrations.langchain import ExtractiveCompressor
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader

QUESTION = "Who opens the sluice?"
DOCUMENTS = [
    Document(page_content="Owls hunt at night.", metadata={"source": "owls.pdf", "page": 3}),
    Document(page_content="Ines Adair opens the sluice at six.", metadata={"source": "mill.pdf"}),
]
ALWAYS = ModelSettings(no_answer_threshold=1.0)


class Shelf(BaseRetriever):
    """Finds the documents for every query."""

    def _get_relevant_documents(self, query: str, **_: object) -> list[Document]:
        return DOCUMENTS


def test_answers_are_documents_with_the_metadata_of_their_source(tiny_bert: str) -> None:
    made = ExtractiveCompressor.from_pretrained(tiny_bert, top_k=3, settings=ALWAYS)
    found = made.compress_documents(DOCUMENTS, QUESTION)
    texts = [each.page_content for each in DOCUMENTS]
    wanted = Reader.from_pretrained(tiny_bert, settings=ALWAYS).answer(QUESTION, texts, top_k=3)
    assert [(each.page_content, each.metadata["score"]) for each in found] == [
        (each.answer, each.score) for each in wanted
    ]
    for each, answer in zip(found, wanted, strict=True):
        source = DOCUMENTS[int(str(answer.document_id))]
        place = slice(each.metadata["start"], each.metadata["end"])
        assert source.page_content[place] == each.page_content
        assert each.metadata["source_text"] == source.page_content
        assert source.metadata.items() <= each.metadata.items()
    assert list(asyncio.run(made.acompress_documents(DOCUMENTS, QUESTION))) == list(found)


def test_compressor_follows_a_retriever_in_a_chain(tiny_bert: str) -> None:
    made = ExtractiveCompressor.from_pretrained(tiny_bert, settings=ALWAYS)
    chain = RunnableLambda(lambda query: made.compress_documents(Shelf().invoke(query), query))
    assert list(chain.invoke(QUESTION)) == list(made.compress_documents(DOCUMENTS, QUESTION))


def test_nothing_is_left_where_nothing_answers(tiny_bert: str) -> None:
    never = ModelSettings(no_answer_threshold=0.0)
    made = ExtractiveCompressor.from_pretrained(tiny_bert, top_k=3, settings=never)
    assert made.compress_documents(DOCUMENTS, QUESTION) == []
    assert made.compress_documents([], QUESTION) == []
    with pytest.raises(InputError, match="the question is empty"):
        made.compress_documents(DOCUMENTS, " ")
