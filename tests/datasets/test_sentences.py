from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqa_ray.datasets.sentences import sentence_around


@pytest.mark.parametrize(
    ("text", "answer", "sentence"),
    [
        ("It rained. The owl slept. Then it flew.", "owl", "The owl slept."),
        ("The owl slept", "owl", "The owl slept"),
        ("He met Dr. Wren in St. Ives. They talked.", "Ives", "He met Dr. Wren in St. Ives."),
        ("J. R. Smith built it. It fell.", "Smith", "J. R. Smith built it."),
        ("It cost 3.50 francs. Now more.", "3.50 francs", "It cost 3.50 francs."),
        ('She said "No." Then Ann left.', "Ann", "Then Ann left."),
        ("A heading\n\nThe owl slept. It woke.", "owl", "The owl slept."),
        ("One line\nof a wrapped owl sentence. Next.", "owl", "One line\nof a wrapped owl sentence."),
        ("猫がいる。犬がいる。鳥もいる。", "犬", "犬がいる。"),
        ("It rained. Who? The owl! It slept.", "Who? The owl", "Who? The owl!"),
    ],
)
def test_sentence_of_an_answer(text: str, answer: str, sentence: str) -> None:
    start = text.index(answer)
    begin, until = sentence_around(text, start, start + len(answer))
    assert text[begin:until] == sentence


def test_endless_sentence_is_cut_between_words() -> None:
    text = "word " * 1000 + "owl" + " word" * 1000
    begin, until = sentence_around(text, 5000, 5003)
    assert text[begin:until].strip() == text[begin:until]
    assert text[begin:until].split().count("word") == len(text[begin:until].split()) - 1
    assert 700 < until - begin < 900


@given(st.text(alphabet="aB .!?\n。'\"", max_size=60), st.data())
def test_sentence_holds_its_answer(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    begin, until = sentence_around(text, start, end)
    assert 0 <= begin <= start <= end <= until <= len(text)
