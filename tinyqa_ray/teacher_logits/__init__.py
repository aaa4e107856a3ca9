"""Windows of tokens with labels and the logits of teachers: what a student learns from."""

from tinyqa_ray.configs import TeacherLogitsConfig
from tinyqa_ray.teacher_logits.report import TeacherLogitsReport
from tinyqa_ray.teacher_logits.stage import teacher_logits

__all__ = ["TeacherLogitsConfig", "TeacherLogitsReport", "teacher_logits"]
