"""Augmentation: answer-safe rewriting, its candidates, and the Ray Data pass over paragraphs."""

from tinyqa_ray.augment.stage import AugmentReport, augment
from tinyqa_ray.configs import AugmentConfig

__all__ = ["AugmentConfig", "AugmentReport", "augment"]
