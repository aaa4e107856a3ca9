from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.tokenizers import same_tokens


def make_tokenizer(name: str, words: str, **special: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate(words.split())}
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="[UNK]")), **special
    )
    tokenizer.name_or_path = name
    return tokenizer


def test_equal_tokenizers_pass() -> None:
    words = "[PAD] [UNK] the cat"
    same_tokens(make_tokenizer("student", words), make_tokenizer("teacher", words))


def test_different_vocabularies_are_refused_with_names_and_tokens() -> None:
    student = make_tokenizer("small-cased", "[PAD] [UNK] the cat sat")
    teacher = make_tokenizer("large-uncased", "[PAD] [UNK] cat the on mat")
    with pytest.raises(InputError) as caught:
        same_tokens(student, teacher)
    message = str(caught.value)
    assert "'small-cased'" in message
    assert "'large-uncased' differ in the ids of 5 tokens" in message
    assert "'cat' (3 and 2), 'the' (2 and 3), 'on' (none and 4), …" in message
    assert "\n" not in message


def test_different_special_tokens_are_refused() -> None:
    words = "[PAD] [UNK] [CLS] [BOS]"
    student = make_tokenizer("student", words, cls_token="[CLS]")
    with pytest.raises(InputError, match=r"1 tokens: cls_token \(2 and 3\);"):
        same_tokens(student, make_tokenizer("teacher", words, cls_token="[BOS]"))
    with pytest.raises(InputError, match=r"1 tokens: cls_token \(2 and none\);"):
        same_tokens(student, make_tokenizer("teacher", words))
