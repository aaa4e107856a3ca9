"""A cascade: which texts a larger model reads, and that it answers from those as it does alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import ModelSettings, first_reader_identity, keep_of
from tinyqa_ray.reader import Reader
from tinyqa_ray.reader.cascade import kept, margins
from tinyqa_ray.reader.spans import Reading, Span

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)
TEXTS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
ASKED = "Who built the lighthouse?"


def test_margin_is_span_against_null() -> None:
    span = Reading((Span(0, 1, 3.0), Span(2, 3, 9.0)), 1.0)
    found = margins([span, Reading((), 1.0), "refused"])
    assert found[:2].tolist() == [2.0, -np.inf]
    assert np.isnan(found[2])


def test_pairs_near_the_best_are_kept_and_always_one() -> None:
    found = np.array([5.0, 4.0, 3.5, -np.inf, np.nan])
    best = np.full(5, 5.0)
    assert kept(found, best, 1.0).tolist() == [True, True, False, False, True]
    assert kept(found, best, 0.0).tolist() == [True, False, False, False, True]
    nothing = np.full(2, -np.inf)
    assert kept(nothing, nothing, 0.0).tolist() == [True, True]


@pytest.fixture
def readers(tiny_bert: str, tiny_roberta: str) -> tuple[Reader, Reader]:
    """The large model alone, and the smaller one."""
    return tuple(Reader.from_pretrained(each, window=WINDOW) for each in (tiny_roberta, tiny_bert))  # type: ignore[return-value]


def test_reader_answers_from_the_texts_near_the_best(
    readers: tuple[Reader, Reader], tiny_bert: str, tiny_roberta: str
) -> None:
    alone, first = readers
    found = margins(first.read([(ASKED, text) for text in TEXTS]))
    keep = float(np.sort(found)[-1] - np.sort(found)[-3])
    cascade = Reader.from_pretrained(tiny_roberta, window=WINDOW, first_pass=tiny_bert, first_pass_keep=keep)
    near = [int(i) for i in np.flatnonzero(found >= np.sort(found)[-3])]
    expected = alone.answer(
        ASKED, [TEXTS[i] for i in near], document_ids=[str(i) for i in near], top_k=3, threshold=1.0
    )
    assert cascade.answer(ASKED, TEXTS, top_k=3, threshold=1.0) == expected
    assert {each.document_id for each in expected} <= {str(i) for i in near}
    everything = Reader.from_pretrained(
        tiny_roberta, window=WINDOW, first_pass=tiny_bert, first_pass_keep=1e9
    )
    assert everything.answer(ASKED, TEXTS, top_k=3) == alone.answer(ASKED, TEXTS, top_k=3)


def test_large_model_reads_no_other_text(tiny_bert: str, tiny_roberta: str) -> None:
    cascade = Reader.from_pretrained(tiny_roberta, window=WINDOW, first_pass=tiny_bert, first_pass_keep=0.0)
    read: list[int] = []
    original = cascade.read_or_refuse

    def counting(pairs, *others, **options):  # type: ignore[no-untyped-def]
        read.append(len(pairs))
        return original(pairs, *others, **options)

    cascade.read_or_refuse = counting  # type: ignore[method-assign]
    cascade.answer(ASKED, TEXTS)
    assert read == [1]
    cascade.answer(ASKED, TEXTS[:1])
    assert read == [1, 1], "one text is read by the large model alone"


def test_keep_is_given_or_fitted_for_this_first_model(tiny_bert: str, tiny_roberta: str) -> None:
    fitted = ModelSettings(first_pass_keep=2.0, first_pass_fitted_for=first_reader_identity(tiny_bert))
    assert keep_of(tiny_bert, None, fitted) == 2.0
    assert keep_of(tiny_bert, 3.0, fitted) == 3.0
    with pytest.raises(InputError, match="but the settings were fitted for another one"):
        keep_of(tiny_roberta, None, fitted)
    with pytest.raises(InputError, match="what it keeps was not fitted; give --settings"):
        Reader.from_pretrained(tiny_roberta, first_pass=tiny_bert)
    with pytest.raises(InputError, match="first_pass_keep is -1; it must be a number, 0 or more"):
        ModelSettings(first_pass_keep=-1)
