"""The export stage: a model → a form of it for CPUs, and what that costs in F1."""

from __future__ import annotations

import importlib.util

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.exported import require_openvino
from tinyqa_ray.export.report import ExportReport
from tinyqa_ray.models.settings import read_settings


def export(config: ExportConfig, output: str, progress: stage_folder.Progress | None = None) -> ExportReport:
    """Export ``config.model`` into ``output``, a folder that ``Reader.from_pretrained`` takes.

    int8 is post-training quantisation with NNCF, the ranges seen on real windows of the calibration data;
    attention maps, softmax and LayerNorm stay in float. When that costs more F1 than is allowed, the
    products that lose most stay in float as well.

    Raises:
        InputError: the extra ``cpu`` is not installed, a model or data that cannot be read, no
            calibration data for int8, or an F1 that drops by more than ``max_f1_drop``.
    """
    require_openvino()
    if config.precision == "int8" and importlib.util.find_spec("nncf") is None:
        raise InputError("int8 is made with NNCF, which is not installed; pip install 'tinyqa-ray[cpu]'")
    settings = read_settings(config.model, config.settings)
    extra = {stage_folder.SETTINGS: settings.identity}
    with stage_folder.stage(output, config, inputs=("model", "calibration"), extra=extra) as stage:
        if stage.finished:
            return stage.report(ExportReport)
        from tinyqa_ray.export.work import work

        return stage.publish(work(config, settings, stage, progress))
