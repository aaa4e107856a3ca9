"""BM25 over a handful of texts in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from tinyqa_ray.corpus.bm25 import Statistics
from tinyqa_ray.corpus.passage_index import ShardIndex, make_index
from tinyqa_ray.corpus.terms import Analyzer


def index_of(texts: Sequence[str], analyzer: Analyzer) -> tuple[ShardIndex, Statistics]:
    """An index in which each text is one passage."""
    rows = range(len(texts))
    documents = pa.table(
        {"row": rows, "document_id": [str(n) for n in rows], "text": pa.array(texts, pa.string())}
    )
    longest = max((sum(1 for _ in analyzer.words(text)) for text in texts), default=1)
    index = ShardIndex(make_index(documents, analyzer, max(longest, 1), 0))
    return index, Statistics(passages=len(index), terms=int(index.length.sum()))
