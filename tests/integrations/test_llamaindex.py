from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("llama_index.core", reason="needs the extra llamaindex")

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from tinyqa_ray.integrations.llamaindex import ExtractiveQueryEngine
from tinyqa_ray.models.settings import ModelSettings
from tinyqa_ray.reader import Reader

QUESTION = "Who opens the sluice?"
TEXTS = ["Owls hunt at night.", "Ines Adair opens the sluice at six."]
ALWAYS = ModelSettings(no_answer_threshold=1.0)


class Shelf(BaseRetriever):
    """Finds the texts for every query."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.nodes = [
            NodeWithScore(node=TextNode(id_=f"n{number}", text=text, metadata={"page": number}), score=0.5)
            for number, text in enumerate(texts)
        ]

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.nodes


def test_response_quotes_the_nodes_and_says_where(tiny_bert: str) -> None:
    engine = ExtractiveQueryEngine.from_pretrained(
        tiny_bert, retriever=Shelf(TEXTS), top_k=3, settings=ALWAYS
    )
    found = engine.query(QUESTION)
    wanted = Reader.from_pretrained(tiny_bert, settings=ALWAYS).answer(QUESTION, TEXTS, top_k=3)
    assert str(found) == wanted[0].answer
    assert [(each["answer"], each["score"], each["node_id"]) for each in found.metadata["answers"]] == [
        (each.answer, each.score, f"n{each.document_id}") for each in wanted
    ]
    for each in found.metadata["answers"]:
        assert TEXTS[int(each["node_id"][1:])][each["start"] : each["end"]] == each["answer"]
    order = list(dict.fromkeys(each["node_id"] for each in found.metadata["answers"]))
    assert [each.node.node_id for each in found.source_nodes] == order
    assert asyncio.run(engine.aquery(QUESTION)).metadata == found.metadata


@pytest.mark.parametrize(("texts", "threshold"), [(TEXTS, 0.0), ([], 1.0)])
def test_response_is_none_where_nothing_answers(tiny_bert: str, texts: list[str], threshold: float) -> None:
    engine = ExtractiveQueryEngine.from_pretrained(
        tiny_bert, retriever=Shelf(texts), settings=ModelSettings(no_answer_threshold=threshold)
    )
    found = engine.query(QUESTION)
    assert found.response is None
    assert found.source_nodes == []
    assert found.metadata == {"answers": []}
