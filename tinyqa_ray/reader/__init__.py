"""Questions answered from contexts: engines, spans, and the reader over them."""

from tinyqa_ray.reader.reader import Answer, Reader

__all__ = ["Answer", "Reader"]
