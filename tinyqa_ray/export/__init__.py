"""Exports a model for CPUs, and compares the F1 and speed of the export with the model's own."""

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.export.report import ExportReport
from tinyqa_ray.export.stage import export

__all__ = ["ExportConfig", "ExportReport", "export"]
