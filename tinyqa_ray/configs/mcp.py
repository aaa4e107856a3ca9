"""What programs may ask by the Model Context Protocol."""

from __future__ import annotations

from dataclasses import dataclass

from tinyqa_ray.configs.checks import at_least
from tinyqa_ray.configs.documents import DocumentLimits
from tinyqa_ray.core import bundled


@dataclass(frozen=True, kw_only=True, slots=True)
class McpConfig:
    """A server of tools that answer from texts, files and corpora (Model Context Protocol)."""

    model: str = bundled.MODEL
    """Folder or hub id of a model with a question-answering head, or an export."""
    settings: str | None = None
    """Threshold and scale of scores: the output of an evaluation, or a settings file. When not given, those
    beside the model are used, if any."""
    precision: str = "auto"
    """How the model is run; as in serve."""
    files: str | None = None
    """Folder whose files may be asked (PDF, DOCX, PPTX, HTML, Markdown, EPUB, text; extra 'documents'), and
    none outside of it. There is no tool for files when not given."""
    index: str | None = None
    """Folder of an index that tinyqa answer made (its --index), whose documents may be asked anything."""
    answers: str | None = None
    """Output of tinyqa answer, whose answers may be looked up."""
    candidates: int = 20
    """Passages of the index that are read for a question."""
    document_limits: DocumentLimits = DocumentLimits(
        max_unpacked_bytes=1 << 26,
        max_file_pages=2000,
        max_file_core_s=60.0,
        max_file_s=120.0,
        max_file_memory_bytes=1 << 30,
    )
    """What a file may take; one that takes more is reported as unreadable."""

    def __post_init__(self) -> None:
        at_least(self, 1, "candidates")
