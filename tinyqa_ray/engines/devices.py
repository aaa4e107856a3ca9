"""Where a torch model runs, and in which precision."""

from __future__ import annotations

import torch

from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.machine import usable_cores
from tinyqa_ray.core.said import say_once

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Types by name; on a card each is replaced by the next one that the card has."""
# fp16 arithmetic came with sm_53, bf16 with sm_80; a V100 is sm_70.
_CAPABILITY = {torch.bfloat16: (8, 0), torch.float16: (5, 3), torch.float32: (0, 0)}


def pick_device(device: str = "auto") -> torch.device:
    """The torch device of a name; ``auto`` is the GPU where there is one.

    Raises:
        InputError: a device that torch does not know, or a GPU where it sees none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InputError(f"device is {device!r}; give 'auto', 'cpu', 'cuda' or 'cuda:1'") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device is {device!r}, but torch sees {torch.cuda.device_count()} CUDA devices; use 'cpu'"
        )
    return chosen


def usable_lanes() -> int:
    """Cores for an engine that is not told how many: torch's threads, but no more than this process may use.

    Torch does not know of the quota that a container has.
    """
    return min(torch.get_num_threads(), usable_cores())


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The precision that a torch model runs in on a device.

    Args:
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU from Ampere on, fp16 on an older
            one, fp32 on a CPU. A GPU that would only emulate bf16 computes in fp16, and a CPU in fp32, with a
            warning.
        device: where it runs.

    Raises:
        InputError: another precision, or fp16 on a CPU.
    """
    if precision == "int8":
        raise InputError(
            "precision is 'int8', but the model is not exported to it; "
            "run tinyqa export --precision int8 and give the exported folder"
        )
    if precision not in ("auto", *_DTYPES):
        raise InputError(f"precision is {precision!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    if device.type == "cuda":
        return _on_card(precision, device)
    if precision == "auto":
        return torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16', which is for GPUs; on a CPU use fp32, bf16 or an int8 export")
    if precision == "bf16" and device.type == "cpu" and not processor.has_bf16():
        processor.say_bf16_is_emulated()
        return torch.float32
    return _DTYPES[precision]


def native_to_card(device: torch.device) -> set[torch.dtype]:
    """The types that a GPU multiplies in its own instructions; it emulates the others."""
    capability = torch.cuda.get_device_capability(device)
    return {dtype for dtype, first in _CAPABILITY.items() if capability >= first}


def _on_card(precision: str, device: torch.device) -> torch.dtype:
    """The wanted precision, or the next one that a GPU has; ``auto`` wants the first."""
    names = [*_DTYPES]
    native = native_to_card(device)
    wanted = names[0] if precision == "auto" else precision
    chosen = next(name for name in names[names.index(wanted) :] if _DTYPES[name] in native)
    if precision not in ("auto", chosen):
        say_once(f"{precision} is computed in {chosen}: this card would only emulate it")
    return _DTYPES[chosen]
