"""What the augmentation stage reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentReport:
    """What an augmentation made."""

    paragraphs: int
    """Paragraphs read."""
    copies: int
    """Paragraphs written, including the originals."""
    questions: int
    """Questions written, including those of the originals."""
    words: int
    """Words in the copies, without the originals."""
    words_replaced: int
    """Words of the copies that were replaced."""
    teacher_found_in_originals: float | None
    """Percentage of answerable questions whose gold answer the teacher finds in the original."""
    teacher_found_in_copies: float | None
    """The same, in the copies."""
    questions_left_out: int
    """Questions left out of copies because the teacher no longer found their answer."""
