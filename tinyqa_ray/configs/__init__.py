"""What every stage can be told: one frozen config a stage, checked when it is made."""

from tinyqa_ray.configs.data import AugmentConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.configs.distill import LAYER_OBJECTIVES, DistillConfig, Objective, Precision
from tinyqa_ray.configs.use import AnswerConfig, EvaluateConfig, ExportConfig

__all__ = [
    "LAYER_OBJECTIVES",
    "AnswerConfig",
    "AugmentConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExportConfig",
    "Objective",
    "Precision",
    "TeacherLogitsConfig",
    "WindowConfig",
]
