"""Small extractive question-answering models: distilled, run over corpora and served on Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyqa_ray.reader import Answer, Evidence, Place, Reader
    from tinyqa_ray.reader.transformers_pipeline import pipeline


__all__ = ["Answer", "Evidence", "Place", "Reader", "__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    """Load the reader, and torch with it, only when it is asked for."""
    if name in ("Answer", "Evidence", "Place", "Reader"):
        from tinyqa_ray import reader

        return getattr(reader, name)
    if name == "pipeline":
        from tinyqa_ray.reader.transformers_pipeline import pipeline

        return pipeline
    raise AttributeError(f"module 'tinyqa_ray' has no attribute {name!r}")
