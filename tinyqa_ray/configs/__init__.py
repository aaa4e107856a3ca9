"""Options of every stage: one frozen config per stage, checked when it is made."""

from tinyqa_ray.configs.corpus import AnswerConfig, CandidateConfig
from tinyqa_ray.configs.data import AugmentConfig, GatherConfig, TeacherLogitsConfig, WindowConfig
from tinyqa_ray.configs.distill import LAYER_OBJECTIVES, DistillConfig, Objective, Precision
from tinyqa_ray.configs.documents import DocumentLimits
from tinyqa_ray.configs.mcp import McpConfig
from tinyqa_ray.configs.serve import LimitConfig, ServeConfig
from tinyqa_ray.configs.suites import SuiteConfig, SuiteName
from tinyqa_ray.configs.use import EvaluateConfig, ExportConfig

__all__ = [
    "LAYER_OBJECTIVES",
    "AnswerConfig",
    "AugmentConfig",
    "CandidateConfig",
    "DistillConfig",
    "DocumentLimits",
    "EvaluateConfig",
    "ExportConfig",
    "GatherConfig",
    "LimitConfig",
    "McpConfig",
    "Objective",
    "Precision",
    "ServeConfig",
    "SuiteConfig",
    "SuiteName",
    "TeacherLogitsConfig",
    "WindowConfig",
]
