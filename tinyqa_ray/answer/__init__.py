"""Answering a corpus: documents and questions → answers in Parquet, on Ray Data."""

from tinyqa_ray.answer.rows import ANSWERS
from tinyqa_ray.answer.stage import FOLDER, AnswerReport, answer

__all__ = ["ANSWERS", "FOLDER", "AnswerReport", "answer"]
