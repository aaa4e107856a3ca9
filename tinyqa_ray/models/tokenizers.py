"""Check that two tokenizers turn texts into the same tokens."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tinyqa_ray.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPECIAL_TOKENS = ("bos", "cls", "eos", "mask", "pad", "sep", "unk")
_DIFFERENCES_SHOWN = 3
_PROBES = ("Who is it?", "  Zoë's Café: IN 1999,\n 3.5 °C — Straße №7", "東京タワー (Tōkyō) 서울 Москва 👍")
"""Texts that tokenizers of one vocabulary may split differently: case, accents, spaces, scripts."""


def same_tokens(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Check that student and teacher give every token the same id, and every text the same tokens.

    Raises:
        InputError: a token or a special token has different ids, or is missing in one of the two; or they
            split a text into different tokens.
    """
    student, teacher = _token_ids(student_tokenizer), _token_ids(teacher_tokenizer)
    if student == teacher:
        _same_texts(student_tokenizer, teacher_tokenizer)
        return
    differing = [name for name in student.keys() | teacher.keys() if student.get(name) != teacher.get(name)]
    # Sorted by id, with tokens that the teacher lacks last: the first difference is the most telling.
    differing.sort(key=lambda name: (teacher.get(name, len(teacher)), name))
    shown = ", ".join(
        f"{name} ({student.get(name, 'none')} and {teacher.get(name, 'none')})"
        for name in differing[:_DIFFERENCES_SHOWN]
    )
    more = ", …" if len(differing) > _DIFFERENCES_SHOWN else ""
    raise InputError(
        f"the student's tokenizer {student_tokenizer.name_or_path!r} and the teacher's "
        f"{teacher_tokenizer.name_or_path!r} differ in the ids of {len(differing)} tokens: {shown}{more}; "
        "use a student and a teacher of one vocabulary"
    )


def have_same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give every token the same id, and every text the same tokens."""
    try:
        same_tokens(one, other)
    except InputError:
        return False
    return True


def _same_texts(
    student_tokenizer: PreTrainedTokenizerBase, teacher_tokenizer: PreTrainedTokenizerBase
) -> None:
    for text in _PROBES:
        # A pair of texts, so that the special tokens around and between them are compared as well.
        student, teacher = (
            tokenizer.convert_ids_to_tokens(tokenizer(text, text)["input_ids"])
            for tokenizer in (student_tokenizer, teacher_tokenizer)
        )
        if student == teacher:
            continue
        pairs = itertools.zip_longest(student, teacher, fillvalue="nothing")
        first = next((mine, its) for mine, its in pairs if mine != its)
        raise InputError(
            f"the student's tokenizer {student_tokenizer.name_or_path!r} and the teacher's "
            f"{teacher_tokenizer.name_or_path!r} read {text!r} as other tokens: {first[0]!r} and "
            f"{first[1]!r}; use a student and a teacher that agree on case, accents and special tokens"
        )


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Ids by quoted token, and by the role of special tokens, such as ``pad_token``."""
    ids = {repr(token): index for token, index in tokenizer.get_vocab().items()}
    roles = {f"{role}_token": getattr(tokenizer, f"{role}_token_id") for role in _SPECIAL_TOKENS}
    return ids | {role: index for role, index in roles.items() if index is not None}
