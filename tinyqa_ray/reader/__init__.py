"""Question answering over contexts: spans from logits, answers, and the reader."""

from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.reader import Reader

__all__ = ["Answer", "Reader"]
