"""How the folder of an exported model is recognised, without loading anything."""

from __future__ import annotations

import importlib

from tinyqa_ray.core import bundled, packages, storage
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import has_file

FILE = "openvino_model.xml"
"""File of a model exported to OpenVINO, within its folder; its weights lie beside it (``.bin``)."""
ONNX_FILES = {"int8": "onnx/model_quantized.onnx", "fp32": "onnx/model.onnx"}
"""Files of a model exported to ONNX, by precision, the faster one first. The names are those of optimum and
transformers.js, which take the folder as it is."""
PRECISION = "tinyqa_precision"
"""Name under which the file says its precision."""
WEIGHT_BITS = "tinyqa_weight_bits"
"""Name under which an int8 file says how many bits its weights take; 8 when it does not say."""


class UnreadableError(InputError):
    """An export whose files its library cannot read."""


def is_exported(name: str) -> bool:
    """Whether ``name`` is a folder that ``tinyqa export`` wrote."""
    return export_format(name) is not None


def export_format(name: str) -> str | None:
    """``openvino`` or ``onnx`` for an exported folder; None for any other model.

    A folder with safetensors is a model, even if ONNX files lie beside them.
    """
    if has_file(name, FILE):
        return "openvino"
    if not any(has_file(name, file) for file in ONNX_FILES.values()):
        return None
    return None if storage.list_files(bundled.located(name), ".safetensors") else "onnx"


def require_openvino() -> None:
    """Raise ``InputError`` when OpenVINO is not installed, or does not load."""
    _require("openvino", "OpenVINO", "exported models run on OpenVINO")


def require_onnx_runtime() -> None:
    """Raise ``InputError`` when ONNX Runtime is not installed, or does not load."""
    _require("onnxruntime", "ONNX Runtime", "ONNX exports run on ONNX Runtime")


def _require(module: str, name: str, why: str) -> None:
    if not packages.installed(module):
        raise InputError(f"{why}, which is not installed; pip install 'tinyqa-ray[cpu]'")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{why}, which is installed but does not load ({error}); install {name} again: "
            f"pip install --force-reinstall {module}"
        ) from None
