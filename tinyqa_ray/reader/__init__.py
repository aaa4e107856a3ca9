"""Questions answered from contexts: engines, spans, and the reader over them."""

from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.reader import Reader

__all__ = ["Answer", "Reader"]
