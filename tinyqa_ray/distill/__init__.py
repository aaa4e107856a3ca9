"""Distillation: objectives and losses, batches, and the training stage on Ray Train."""

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.report import DistillReport
from tinyqa_ray.distill.stage import distill

__all__ = ["DistillConfig", "DistillReport", "distill"]
