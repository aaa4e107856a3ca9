"""Checks of a config's values; each error names the field, what was given and what is allowed."""

from __future__ import annotations

import math
from typing import Any

from tinyqa_ray.core import forms
from tinyqa_ray.core.errors import InputError


def at_least(config: object, minimum: float, *names: str) -> None:
    """Refuse a field that is below ``minimum`` or not finite; None is accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not (math.isfinite(value) and value >= minimum):
            raise InputError(f"{name} is {value}; it must be at least {minimum:g}")


def share(config: object, *names: str, zero: bool = True) -> None:
    """Refuse a field outside [0, 1] or, if ``zero`` is False, outside (0, 1]."""
    for name in names:
        value = getattr(config, name)
        if not (0.0 <= value <= 1.0) or (value == 0.0 and not zero):
            raise InputError(f"{name} is {value}; it must lie in {'[' if zero else '('}0, 1]")


def default(config: object, name: str, value: object) -> None:
    """Fill in a field that was not given, so that the fingerprint covers its value."""
    if getattr(config, name) is None:
        object.__setattr__(config, name, value)


def engine_of_cpus(config: Any) -> None:
    """Refuse an engine of CPUs, as ``precision``, beside GPUs."""
    if config.num_gpus and config.precision in ("torch-fp32", *forms.NAMES):
        raise InputError(
            f"precision is {config.precision!r}, an engine of CPUs, but num_gpus is {config.num_gpus:g}; "
            "leave out num_gpus, or use precision fp32, bf16 or fp16"
        )


def positive(config: object, *names: str) -> None:
    """Refuse a field that is not above 0 or not finite."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be above 0")
