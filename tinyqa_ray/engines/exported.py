"""How the folder of an exported model is recognised, without loading anything."""

from __future__ import annotations

import importlib.util

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.models.settings import has_file

FILE = "openvino_model.xml"
"""File of an exported model, within its folder; its weights lie beside it (``.bin``)."""
PRECISION = "tinyqa_precision"
"""Name under which the file says its precision."""
WEIGHT_BITS = "tinyqa_weight_bits"
"""Name under which an int8 file says how many bits its weights take; 8 when it does not say."""


def is_exported(name: str) -> bool:
    """Whether ``name`` is a folder that ``tinyqa export`` wrote."""
    return has_file(name, FILE)


def require_openvino() -> None:
    """Raise ``InputError`` when OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise InputError(
            "exported models run on OpenVINO, which is not installed; pip install 'tinyqa-ray[cpu]'"
        )
