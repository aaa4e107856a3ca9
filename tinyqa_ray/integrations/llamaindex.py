"""LlamaIndex's query engine that quotes what a retriever finds, without an LLM; extra ``llamaindex``.

from tinyqa_ray.integrations.llamaindex import ExtractiveQueryEngine

engine = ExtractiveQueryEngine.from_pretrained(retriever=index.as_retriever())
engine.query("Who built it?").metadata["answers"]
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from tinyqa_ray.core import bundled
from tinyqa_ray.reader import Reader

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.base.response.schema import Response
    from llama_index.core.query_engine import CustomQueryEngine
    from llama_index.core.schema import MetadataMode, NodeWithScore
except ImportError as error:
    raise ImportError(
        "tinyqa_ray.integrations.llamaindex needs LlamaIndex; pip install 'tinyqa-ray[llamaindex]'"
    ) from error


class ExtractiveQueryEngine(CustomQueryEngine):
    """Answers a query from the nodes that a retriever finds for it.

    The response is the best answer, quoted, or None where no node answers. Its ``source_nodes`` are the nodes
    of the answers, best first, and ``metadata["answers"]`` a list of ``answer``, ``score``, ``node_id``,
    ``start``, ``end`` (characters of the node's text) and ``na_prob``.
    """

    retriever: BaseRetriever
    """What finds the nodes."""
    reader: Reader
    """What finds the answers in them."""
    top_k: int = Field(default=1, ge=1)
    """Most answers over all nodes."""

    @classmethod
    def from_pretrained(
        cls, model: str = bundled.MODEL, *, retriever: BaseRetriever, top_k: int = 1, **options: Any
    ) -> Any:
        """An engine with a model; ``options`` and errors as of ``Reader.from_pretrained``."""
        return cls(retriever=retriever, reader=Reader.from_pretrained(model, **options), top_k=top_k)

    def custom_query(self, query_str: str) -> Response:
        """Answer a query.

        Raises:
            InputError: it cannot be asked.
        """
        return self._answered(query_str, self.retriever.retrieve(query_str))

    async def acustom_query(self, query_str: str) -> Response:
        """As ``custom_query``; the model runs in a thread."""
        nodes = await self.retriever.aretrieve(query_str)
        return await asyncio.to_thread(self._answered, query_str, nodes)

    def _answered(self, query: str, nodes: Sequence[NodeWithScore]) -> Response:
        texts = [each.node.get_content(metadata_mode=MetadataMode.NONE) for each in nodes]
        numbers = [str(number) for number in range(len(texts))]
        found = self.reader.answer(query, texts, document_ids=numbers, top_k=self.top_k) if texts else []
        good = [each for each in found if each.answer is not None] if found and found[0].answer else []
        sources = [nodes[int(str(each.document_id))] for each in good]
        names = ("answer", "score", "start", "end", "na_prob")
        answers = [
            {**{name: getattr(each, name) for name in names}, "node_id": source.node.node_id}
            for each, source in zip(good, sources, strict=True)
        ]
        distinct = list({each.node.node_id: each for each in sources}.values())
        best = good[0].answer if good else None
        return Response(best, source_nodes=distinct, metadata={"answers": answers})
