"""What the teachers' pass reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogitsReport:
    """What the pass wrote."""

    paragraphs: int
    questions: int
    windows: int
    tokens: int
    """Tokens of all windows, without padding."""
    answerable_windows: int
    """Windows that hold a whole answer."""
