"""Measuring a model on SQuAD 2.0 questions: official metrics, the no-answer threshold, a page to read."""

from tinyqa_ray.configs import EvaluateConfig, SuiteConfig
from tinyqa_ray.evaluate.report import EvaluateReport
from tinyqa_ray.evaluate.stage import evaluate
from tinyqa_ray.evaluate.suite_report import SuiteReport
from tinyqa_ray.evaluate.suites import evaluate_suites

__all__ = [
    "EvaluateConfig",
    "EvaluateReport",
    "SuiteConfig",
    "SuiteReport",
    "evaluate",
    "evaluate_suites",
]
