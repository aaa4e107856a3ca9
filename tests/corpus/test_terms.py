from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.corpus.terms import Analyzer

PLAIN = Analyzer(None)
ENGLISH = Analyzer("english")


def test_english_is_stemmed_without_stop_words() -> None:
    assert ENGLISH.terms("What did the Normans' dukes govern?") == ["norman", "duke", "govern"]
    assert ENGLISH.terms("Newton\u2019s laws, Newton's law") == ["newton", "law", "newton", "law"]


@pytest.mark.parametrize(
    ("language", "word"),
    [
        ("danish", "og"),
        ("dutch", "de"),
        ("french", "le"),
        ("german", "und"),
        ("italian", "il"),
        ("norwegian", "og"),
        ("portuguese", "um"),
        ("russian", "как"),
        ("spanish", "el"),
        ("swedish", "och"),
        ("turkish", "ve"),
    ],
)
def test_other_languages_have_stop_words_too(language: str, word: str) -> None:
    assert Analyzer(language).term(word) is None


def test_language_without_a_list_of_stop_words_has_none() -> None:
    assert Analyzer("finnish").terms("kuningas ja linna") == ["kuningas", "ja", "lin"]


def test_without_language_every_word_is_a_term() -> None:
    assert PLAIN.terms("The dukes, 1,000 of them") == ["the", "dukes", "1", "000", "of", "them"]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Łódź, Żółć", ["łódź", "żółć"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("Москва́", ["москва́"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("Ｔｏｋｙｏは東京", ["tokyo", "は", "東", "京"]),
        ("서울 시", ["서울", "시"]),
        ("…!? — 🙂", []),
    ],
)
def test_words_of_any_script_are_whole(text: str, terms: list[str]) -> None:
    assert PLAIN.terms(text) == [unicodedata.normalize("NFKC", term) for term in terms]


@settings(deadline=None, max_examples=60)
@given(st.text(st.sampled_from("éüñ가Åe ́b"), max_size=20))
def test_composed_and_decomposed_text_have_the_same_terms(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    decomposed = unicodedata.normalize("NFD", composed)
    assert PLAIN.terms(composed) == PLAIN.terms(decomposed)


@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(codec="utf-8")))
def test_starts_point_at_the_words(text: str) -> None:
    words, starts = list(PLAIN.words(text)), list(PLAIN.starts(text))
    assert [text[start : start + len(word)] for word, start in zip(words, starts, strict=True)] == words


def test_letters_without_end_are_several_words() -> None:
    words = list(PLAIN.words("x" * 10_000))
    assert len(words) > 100
    assert "".join(words) == "x" * 10_000


def test_unknown_language_is_refused_with_those_known() -> None:
    with pytest.raises(InputError, match=r"language is 'klingon'; it must be none or one of .*english"):
        Analyzer("klingon")
