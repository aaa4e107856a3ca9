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
    start_on_border: tuple[float | None, ...] = ()
    """For each teacher, if one reads other tokens than the student: the share of its starts in the context,
    by their probability, that fell on the first character of a student's token, as a mean over windows.
    None for a teacher that reads the student's tokens."""
    end_on_border: tuple[float | None, ...] = ()
    """The same of its ends, and the last character of a student's token."""
