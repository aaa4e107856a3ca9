"""Question answering over contexts: spans from logits, answers, their evidence, and the reader."""

from tinyqa_ray.reader.answers import Answer
from tinyqa_ray.reader.evidence import Evidence, Place
from tinyqa_ray.reader.reader import Reader

__all__ = ["Answer", "Evidence", "Place", "Reader"]
