"""Augmentation: answer-safe rewriting, its candidates, and the Ray Data pass over paragraphs."""

from tinyqa_ray.augment.report import AugmentReport
from tinyqa_ray.augment.stage import augment
from tinyqa_ray.configs import AugmentConfig

__all__ = ["AugmentConfig", "AugmentReport", "augment"]
