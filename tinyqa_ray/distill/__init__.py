"""Distillation: the teacher's pass, objectives and losses, batches, and the training stage on Ray Train."""

from tinyqa_ray.configs import DistillConfig, TeacherLogitsConfig
from tinyqa_ray.distill.stage import DistillReport, distill
from tinyqa_ray.distill.teacher_logits import TeacherLogitsReport, teacher_logits

__all__ = [
    "DistillConfig",
    "DistillReport",
    "TeacherLogitsConfig",
    "TeacherLogitsReport",
    "distill",
    "teacher_logits",
]
