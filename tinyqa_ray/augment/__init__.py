"""Augmentation: rewriting that keeps the answers, its candidate words, and the pass on Ray Data."""

from tinyqa_ray.augment.report import AugmentReport
from tinyqa_ray.augment.stage import augment
from tinyqa_ray.configs import AugmentConfig

__all__ = ["AugmentConfig", "AugmentReport", "augment"]
