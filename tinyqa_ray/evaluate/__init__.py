"""Measuring a model on SQuAD 2.0 questions: official metrics, the no-answer threshold, a page to read."""

from tinyqa_ray.configs import EvaluateConfig
from tinyqa_ray.evaluate.report import EvaluateReport
from tinyqa_ray.evaluate.stage import evaluate

__all__ = ["EvaluateConfig", "EvaluateReport", "evaluate"]
