"""``pipeline("question-answering")`` with the parameters and results of transformers up to 5.2."""

from tinyqa_ray.reader.transformers_pipeline.pipeline import pipeline

__all__ = ["pipeline"]
