"""Versions of installed packages, under whichever of their names they were installed."""

from __future__ import annotations

import importlib.util
from importlib import metadata

_OTHER_NAMES = {"onnxruntime": ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-silicon")}
"""Distributions that bring a module of this name, too."""


def installed(*modules: str) -> bool:
    """Whether all of these modules are there; nothing is imported."""
    return all(importlib.util.find_spec(name) is not None for name in modules)


def versions(*modules: str) -> list[str]:
    """Name and version of each of these modules, ``absent`` or ``unknown`` in place of the version."""
    return [f"{name} {_version(name)}" for name in modules]


def _version(module: str) -> str:
    if not installed(module):
        return "absent"
    names = (module, *_OTHER_NAMES.get(module, ()))
    found = (each for name in names for each in metadata.distributions(name=name))
    return next((each.version for each in found), "unknown")
