from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import bm25s
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.corpus.bm25 import Ranked, Statistics, best_passages
from tinyqa_ray.corpus.passage_index import INDEX, ShardIndex, locate, make_index
from tinyqa_ray.corpus.terms import Analyzer

ANALYZER = Analyzer(None)
WORDS = st.sampled_from(["a", "b", "c", "d", "é", "東"])
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)


def documents(texts: Sequence[str | None], first: int = 0) -> pa.Table:
    rows = range(first, first + len(texts))
    columns = {"row": list(rows), "document_id": [f"d{row}" for row in rows], "text": list(texts)}
    types = [("row", pa.int64()), ("document_id", pa.string()), ("text", pa.large_string())]
    return pa.table(columns, schema=pa.schema(types))


def index(texts: Sequence[str | None], shard: int, words: int = 100, overlap: int = 0) -> list[ShardIndex]:
    """One index for every ``shard`` documents."""
    parts = [documents(texts[i : i + shard], i) for i in range(0, len(texts), shard)]
    return [ShardIndex(make_index(part, ANALYZER, words, overlap)) for part in parts]


def ask(questions: Sequence[str], shards: list[ShardIndex], n: int, k1: float, b: float) -> list[Ranked]:
    corpus = Statistics(passages=sum(map(len, shards)), terms=sum(int(s.length.sum()) for s in shards))
    return best_passages([ANALYZER.terms(question) for question in questions], shards, corpus, n, k1=k1, b=b)


def plain_bm25(question: str, texts: Sequence[str], k1: float, b: float) -> list[float]:
    """The formula, word by word."""
    counts = [Counter(text.split()) for text in texts]
    mean = sum(map(Counter.total, counts)) / len(counts)
    scores = [0.0] * len(texts)
    for term in question.split():
        frequency = sum(term in count for count in counts)
        idf = math.log(1 + (len(texts) - frequency + 0.5) / (frequency + 0.5))
        for i, count in enumerate(counts):
            if count[term]:
                norm = k1 * (1 - b + b * count.total() / mean)
                scores[i] += idf * count[term] / (norm + count[term])
    return scores


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=12),
    question=TEXTS,
    shard=st.integers(1, 12),
    n=st.integers(1, 15),
    k1=st.floats(0.1, 3),
    b=st.floats(0, 1),
)
def test_scores_are_those_of_the_formula_over_the_whole_corpus(
    texts: list[str], question: str, shard: int, n: int, k1: float, b: float
) -> None:
    wanted = plain_bm25(question, texts, k1, b)
    ((numbers, scores),) = ask([question], index(texts, shard), n, k1, b)
    assert len(numbers) == min(n, sum(score > 0 for score in wanted))
    assert scores == pytest.approx([wanted[number] for number in numbers], rel=1e-5)
    assert scores == pytest.approx(sorted(wanted, reverse=True)[: len(scores)], rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=12),
    questions=st.lists(TEXTS, max_size=4),
    n=st.integers(1, 5),
    shard=st.integers(1, 11),
)
def test_sharding_changes_no_bit_of_a_result(
    texts: list[str], questions: list[str], n: int, shard: int
) -> None:
    whole = ask(questions, index(texts, len(texts)), n, 1.2, 0.75)
    parts = ask(questions, index(texts, shard), n, 1.2, 0.75)
    for (numbers, scores), (others, their_scores) in zip(whole, parts, strict=True):
        assert numbers.tolist() == others.tolist()
        assert scores.tobytes() == their_scores.tobytes()


def test_scores_are_those_of_bm25s() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices("abcdefghij", k=rng.randint(1, 30))) for _ in range(200)]
    theirs = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    theirs.index([text.split() for text in texts], show_progress=False)
    for question in ("a b", "j", "c c d"):
        wanted = theirs.get_scores(question.split())
        ((numbers, scores),) = ask([question], index(texts, 64), 200, 1.5, 0.75)
        assert len(numbers) == (wanted > 0).sum()
        np.testing.assert_allclose(scores, wanted[numbers], rtol=1e-5)


def test_of_equal_passages_the_earlier_comes_first() -> None:
    ((numbers, _),) = ask(["a"], index(["b", "a", "a c", "a", "a c", "a"], 2), 4, 1.2, 0.75)
    assert numbers.tolist() == [1, 3, 5, 2]


def test_question_without_a_known_word_has_no_passage() -> None:
    found = ask(["z", "", "a z"], index(["a b", "c"], 1), 5, 1.2, 0.75)
    assert [numbers.tolist() for numbers, _ in found] == [[], [], [0]]


@pytest.mark.parametrize("texts", [[], [None], ["!!", "…"]])
def test_corpus_without_words_has_no_passage_to_offer(texts: list[str | None]) -> None:
    ((numbers, scores),) = ask(["a"], index(texts, 2), 5, 1.2, 0.75)
    assert len(numbers) == len(scores) == 0


@settings(deadline=None, max_examples=80)
@given(
    words=st.integers(0, 60),
    size=st.integers(1, 20),
    overlap=st.integers(0, 19),
)
def test_passages_cover_a_document_and_overlap(words: int, size: int, overlap: int) -> None:
    overlap = min(overlap, size - 1)
    text = "«" + ", ".join(f"w{number}" for number in range(words)) + "»"
    (shard,) = index([text], 1, size, overlap)
    passages = [text[row["start"] : row["end"]] for row in shard.places.to_pylist()]
    found = [list(ANALYZER.words(passage)) for passage in passages]
    assert passages[0].startswith("«")
    assert passages[-1].endswith("»")
    assert all(len(each) == min(size, words) for each in found)
    for one, two in itertools.pairwise(found):
        assert int(one[0][1:]) < int(two[0][1:])
        assert len(set(one) & set(two)) >= overlap
    assert dict.fromkeys(word for each in found for word in each) == dict.fromkeys(ANALYZER.words(text))


def test_document_without_text_has_no_passage() -> None:
    (shard,) = index(["a b", None, "c"], 3)
    assert shard.places["document_id"].to_pylist() == ["d0", "d2"]
    assert shard.length.tolist() == [2, 1]


def test_index_is_mapped_not_read(tmp_path: Path) -> None:
    table = make_index(documents(["a b a", "b c"]), ANALYZER, 100, 0)
    assert table.schema == INDEX
    with pa.ipc.new_stream(str(tmp_path / "i.arrow"), table.schema) as writer:
        writer.write_table(table)
    before = pa.total_allocated_bytes()
    shard = ShardIndex.read(str(tmp_path / "i.arrow"))
    assert pa.total_allocated_bytes() == before
    assert shard.count.tolist() == [2, 1, 1, 1]
    assert shard.find(pa.array(["c", "x", "a"])).tolist() == [2, -1, 0]


def test_passages_are_located_over_shards() -> None:
    shards = index(["a b c", "d", "e f"], 1, words=2)
    found = locate(np.array([0, 1, 1, 3]), shards)
    assert found["row"].to_pylist() == [0, 0, 0, 2]
    assert found["document_id"].to_pylist() == ["d0", "d0", "d0", "d2"]
    assert found["start"].to_pylist() == [0, 2, 2, 0]
    assert found["end"].to_pylist() == [4, 5, 5, 3]
