"""Answering a corpus: documents and questions → answers in Parquet, on Ray Data."""

from tinyqa_ray.answer.report import FOLDER, AnswerReport
from tinyqa_ray.answer.stage import answer
from tinyqa_ray.configs import AnswerConfig

__all__ = ["FOLDER", "AnswerConfig", "AnswerReport", "answer"]
