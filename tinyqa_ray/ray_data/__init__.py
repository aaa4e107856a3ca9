"""Processors for Ray Data: a Dataset in, a Dataset out, as in ``ray.data.llm``.

    from tinyqa_ray.ray_data import AnswerProcessorConfig, build_answer_processor

    processor = build_answer_processor(AnswerProcessorConfig(concurrency=2))
    answered = processor(ray.data.read_parquet("s3://bucket/pairs/"))

Ray Data reads, schedules and writes, with any of its sources and sinks. What it promises is its own: rows are
worked at least once, in no fixed order, and files are written under new names. Where every row must be there
exactly once after any kill, with the same bytes, use the commands (``tinyqa answer`` and its like).
"""

from tinyqa_ray.ray_data.actors import ActorConfig
from tinyqa_ray.ray_data.answering import AnswerBatches, AnswerProcessorConfig, build_answer_processor
from tinyqa_ray.ray_data.augmentation import (
    AugmentationProcessorConfig,
    AugmentBatches,
    build_augmentation_processor,
)
from tinyqa_ray.ray_data.processor import Processor
from tinyqa_ray.ray_data.teaching import (
    TeacherLogitsBatches,
    TeacherLogitsProcessorConfig,
    build_teacher_logits_processor,
)

__all__ = [
    "ActorConfig",
    "AnswerBatches",
    "AnswerProcessorConfig",
    "AugmentBatches",
    "AugmentationProcessorConfig",
    "Processor",
    "TeacherLogitsBatches",
    "TeacherLogitsProcessorConfig",
    "build_answer_processor",
    "build_augmentation_processor",
    "build_teacher_logits_processor",
]
