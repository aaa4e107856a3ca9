"""The export stage: a model → an export for CPUs or smaller weights, and the loss of F1."""

from __future__ import annotations

import importlib.util

from tinyqa_ray.configs import ExportConfig
from tinyqa_ray.core import stage_folder
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.exported import require_onnx_runtime, require_openvino
from tinyqa_ray.export.report import ExportReport
from tinyqa_ray.models.settings import read_settings


def export(config: ExportConfig, output: str, progress: stage_folder.Progress | None = None) -> ExportReport:
    """Export ``config.model`` into ``output``, a folder that ``Reader.from_pretrained`` takes.

    int8 is post-training quantisation, which learns from real windows of the calibration data: in OpenVINO,
    with NNCF, the ranges of activations; in ONNX, where each batch has its own (dynamic quantisation), how
    activations are evened out and how weights are rounded. Attention maps, softmax and LayerNorm stay in
    float. If that loses more F1 than is allowed, the matrix products that lose most stay in float as well.

    Raises:
        InputError: the extra ``cpu`` is not installed, the model or data cannot be read, int8 has no
            calibration data, or F1 drops by more than ``max_f1_drop``.
    """
    if config.format == "onnx":
        _require_onnx()
    elif config.format != "safetensors":
        require_openvino()
    if config.precision == "int8" and config.format != "onnx" and importlib.util.find_spec("nncf") is None:
        raise InputError("int8 is made with NNCF, which is not installed; pip install 'tinyqa-ray[cpu]'")
    settings = read_settings(config.model, config.settings)
    extra = {stage_folder.SETTINGS: settings.identity}
    with stage_folder.stage(
        output, config, inputs=("model", "soup_with", "calibration"), extra=extra
    ) as stage:
        if stage.finished:
            return stage.report(ExportReport)
        from tinyqa_ray.export.work import work

        return stage.publish(work(config, settings, stage, progress))


def _require_onnx() -> None:
    require_onnx_runtime()
    if importlib.util.find_spec("onnx") is None:
        raise InputError(
            "ONNX files are written with onnx, which is not installed; pip install 'tinyqa-ray[cpu]'"
        )
