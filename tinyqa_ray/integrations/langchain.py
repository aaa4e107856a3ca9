"""LangChain's document compressor that keeps of retrieved documents what answers; extra ``langchain``.

from tinyqa_ray.integrations.langchain import ExtractiveCompressor

answers = ExtractiveCompressor.from_pretrained(top_k=2).compress_documents(documents, "Who built it?")
answers[0].page_content, answers[0].metadata["score"]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, Field

from tinyqa_ray.core import bundled
from tinyqa_ray.reader import Reader

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import Document
    from langchain_core.documents.compressor import BaseDocumentCompressor
except ImportError as error:
    raise ImportError(
        "tinyqa_ray.integrations.langchain needs LangChain; pip install 'tinyqa-ray[langchain]'"
    ) from error


class ExtractiveCompressor(BaseDocumentCompressor):
    """Makes a document of each answer to the query: its text, quoted, is the content.

    The metadata are those of the document that holds it, and ``score``, ``start``, ``end`` (characters of
    that document's content), ``na_prob`` and ``source_text``, that content. Nothing is left where no
    document answers.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    reader: Reader
    """What finds the answers."""
    top_k: int = Field(default=1, ge=1)
    """Most answers over all documents."""

    @classmethod
    def from_pretrained(cls, model: str = bundled.MODEL, *, top_k: int = 1, **options: Any) -> Any:
        """A compressor with a model; ``options`` and errors as of ``Reader.from_pretrained``."""
        return cls(reader=Reader.from_pretrained(model, **options), top_k=top_k)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The answers, best first.

        Raises:
            InputError: the query cannot be asked.
        """
        if not documents:
            return []
        texts = [each.page_content for each in documents]
        numbers = [str(number) for number in range(len(texts))]
        found = self.reader.answer(query, texts, document_ids=numbers, top_k=self.top_k)
        made = []
        for each in found if found[0].answer is not None else ():
            if each.answer is not None:
                source = documents[int(str(each.document_id))]
                place = {"score": each.score, "start": each.start, "end": each.end, "na_prob": each.na_prob}
                metadata = {**source.metadata, **place, "source_text": source.page_content}
                made.append(Document(page_content=each.answer, metadata=metadata))
        return made
