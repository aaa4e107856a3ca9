"""What reading a document may take."""

from __future__ import annotations

from dataclasses import dataclass

from tinyqa_ray.configs.checks import at_least, positive
from tinyqa_ray.core.stage_folder import execution


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentLimits:
    """What a file may take; one that takes more is unreadable, so that memory and time stay bounded.

    Time and memory are limits of the process that reads files. They are no part of what a run is, since they
    depend on the machine: a run can be continued with others.
    """

    max_file_bytes: int = 1 << 28
    """Bytes of a file."""
    max_unpacked_bytes: int = 1 << 28
    """Bytes of all members of an archive that are unpacked."""
    max_file_characters: int = 1 << 26
    """Characters of the text."""
    max_file_pages: int = 10_000
    """Pages of a PDF, slides of a presentation, or chapters of a book."""
    max_file_core_s: float = execution(240.0)
    """Seconds of one core that a file may take: enough for the most pages."""
    max_file_s: float = execution(1200.0)
    """Seconds by the clock that a file may take: more, since the machine may be busy with other work."""
    max_file_memory_bytes: int = execution(1 << 31)
    """Bytes of memory that a file may take, beside those of the process that reads it. Linux only."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_file_bytes", "max_unpacked_bytes", "max_file_characters", "max_file_pages")
        at_least(self, 1 << 24, "max_file_memory_bytes")
        positive(self, "max_file_core_s", "max_file_s")
