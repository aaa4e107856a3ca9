"""What the augmentation stage reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentReport:
    """What an augmentation made."""

    paragraphs: int
    """Paragraphs read."""
    copies: int
    """Paragraphs written, the originals among them."""
    questions: int
    """Questions written, the originals among them."""
    words: int
    """Words of the copies, originals left out."""
    words_replaced: int
    """Words that changed."""
    teacher_found_in_originals: float | None
    """Answerable questions whose gold answer the teacher finds in the original, in percent."""
    teacher_found_in_copies: float | None
    """The same, in the copies."""
    questions_left_out: int
    """Questions of copies left out, since the teacher did not find their answer any more."""
