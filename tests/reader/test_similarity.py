"""A first pass by an encoder of sentences: each text and question once, whatever else is read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.sentences import sentences
from tinyqa_ray.reader import Reader, similarity
from tinyqa_ray.reader.reader import check_first_reader, first_reader
from tinyqa_ray.reader.similarity import SentenceSimilarity

WINDOW = WindowConfig(max_seq_len=96, doc_stride=8, max_query_len=20)
TEXTS = [p["context"] for article in tiny.squad_document()["data"] for p in article["paragraphs"]]
ASKED = "Who built the lighthouse?"


def write_pooling(folder: Path, **modes: bool) -> None:
    (folder / "1_Pooling").mkdir(exist_ok=True)
    described = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(described))


@pytest.fixture
def encoder(tiny_bert: str, tmp_path: Path) -> Path:
    folder = tiny.write_sentence_encoder(tiny_bert, tmp_path / "encoder")
    write_pooling(folder, cls_token=False, mean_tokens=True)
    return folder


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_similarity_is_that_of_the_nearest_sentence_and_of_the_nearest_tokens(
    encoder: Path, pooling: str
) -> None:
    write_pooling(encoder, **{pooling: True})
    network = AutoModel.from_pretrained(encoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(encoder)

    def states(text: str) -> torch.Tensor:
        hidden: torch.Tensor = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        return hidden

    def vector(text: str) -> torch.Tensor:
        pooled = states(text).mean(0) if pooling == "mean_tokens" else states(text)[0]
        return pooled / pooled.norm()

    def tokens(text: str) -> torch.Tensor:
        own = states(text)[1:-1]
        return own / own.norm(dim=-1, keepdim=True)

    text = "The tower is old. Ada Byron built the lighthouse in 1843. It rains."
    with torch.inference_mode():
        parts = ("The tower is old.", "Ada Byron built the lighthouse in 1843.", "It rains.")
        of_sentences = max(float(vector(part) @ vector(ASKED)) for part in parts)
        cosines = tokens(ASKED) @ torch.cat([tokens(part) for part in parts]).T
        expected = of_sentences + float(cosines.max(dim=1).values.mean())
    found = SentenceSimilarity(str(encoder), device="cpu").margins([(ASKED, text)])
    assert found == pytest.approx([expected], abs=2e-3), "tokens are kept in half precision"


def test_similarity_does_not_depend_on_what_else_was_read(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(ASKED, text) for text in TEXTS]
    together = SentenceSimilarity(str(encoder), device="cpu").margins(pairs)
    monkeypatch.setattr(similarity, "_CACHED_BYTES", 0)
    backwards = SentenceSimilarity(str(encoder), device="cpu")
    assert [float(backwards.margins([pair])[0]) for pair in pairs[::-1]] == together[::-1].tolist()
    assert not backwards._known, "without room nothing is kept"


def test_each_text_and_question_is_encoded_once(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = SentenceSimilarity(str(encoder), device="cpu")
    encoded: list[str] = []
    original = first._encoded
    monkeypatch.setattr(first, "_encoded", lambda parts: encoded.extend(parts) or original(parts))
    pairs = [(question, text) for text in TEXTS[:3] for question in (ASKED, "What rains?")]
    for _ in range(2):
        first.margins(pairs * 2)
    parts = [text[start:end] for text in TEXTS[:3] for start, end in sentences(text)]
    assert sorted(encoded) == sorted([*parts, ASKED, "What rains?"])


def test_text_without_a_sentence_holds_nothing_and_a_pair_that_cannot_be_asked_is_unknown(
    encoder: Path,
) -> None:
    first = SentenceSimilarity(str(encoder), device="cpu")
    found = first.margins([(ASKED, " \n "), (ASKED, None), ("", TEXTS[0]), (ASKED, TEXTS[0])])
    assert found[0] == -np.inf
    assert np.isnan(found[1:3]).all()
    assert np.isfinite(found[3])


def test_reader_reads_the_texts_that_are_near(encoder: Path, tiny_roberta: str) -> None:
    found = first_reader(str(encoder)).margins([(ASKED, text) for text in TEXTS])
    keep = float(np.sort(found)[-1] - np.sort(found)[-2]) + 1e-6
    near = [int(i) for i in np.flatnonzero(found >= np.sort(found)[-2])]
    alone = Reader.from_pretrained(tiny_roberta, window=WINDOW)
    cascade = Reader.from_pretrained(
        tiny_roberta, window=WINDOW, first_pass=str(encoder), first_pass_keep=keep
    )
    ids = [str(i) for i in near]
    expected = alone.answer(ASKED, [TEXTS[i] for i in near], document_ids=ids, threshold=1.0)
    assert cascade.answer(ASKED, TEXTS, threshold=1.0) == expected


def test_encoder_that_pools_otherwise_is_refused(encoder: Path) -> None:
    write_pooling(encoder, mean_tokens=True, max_tokens=True)
    for refuses in (first_reader, lambda name: check_first_reader(name, WINDOW)):
        with pytest.raises(InputError, match=r"pools its tokens by mean_tokens\+max_tokens"):
            refuses(str(encoder))


def test_encoder_without_the_description_of_one_is_asked_for_a_head(encoder: Path) -> None:
    (encoder / "modules.json").unlink()
    with pytest.raises(InputError, match="question-answering"):
        check_first_reader(str(encoder), WINDOW)


@given(
    st.text(alphabet="aB. !?\n。é1", max_size=60)
    | st.sampled_from(["Dr. A. B. Owl hoots. " * 80, "x" * 2000])
)
def test_sentences_hold_everything_but_white_space_in_order(text: str) -> None:
    places = sentences(text)
    covered = [character for start, end in places for character in text[start:end]]
    assert "".join("".join(covered).split()) == "".join(text.split())
    assert all(0 < end - start <= 800 for start, end in places)
    assert all(text[start:end] == text[start:end].strip() for start, end in places)
    assert all(one[1] <= two[0] for one, two in itertools.pairwise(places))


def test_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    text = "Dr. A. Byron built it in 1843. It is near St. Ives! Is it? Yes."
    assert [text[start:end] for start, end in sentences(text)] == [
        "Dr. A. Byron built it in 1843.",
        "It is near St. Ives!",
        "Is it?",
        "Yes.",
    ]
