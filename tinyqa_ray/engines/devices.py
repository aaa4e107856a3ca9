"""Where a torch model runs, and in which precision."""

from __future__ import annotations

import torch

from tinyqa_ray.core import processor
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.machine import usable_cores

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
            one, fp32 on a CPU. A CPU that would only emulate bf16 computes in fp32, with a warning.
        device: where it runs.

    Raises:
        InputError: another precision, or fp16 on a CPU.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        # fp16 arithmetic came with sm_53, bf16 with sm_80; a V100 is sm_70.
        major, minor = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16 if (major, minor) >= (5, 3) else torch.float32
    if precision == "int8":
        raise InputError(
            "precision is 'int8', but the model is not exported to it; "
            "run tinyqa export --precision int8 and give the exported folder"
        )
    if precision not in _DTYPES:
        raise InputError(f"precision is {precision!r}; it must be one of auto, {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision is 'fp16', which is for GPUs; on a CPU use fp32, bf16 or an int8 export")
    if precision == "bf16" and device.type == "cpu" and not processor.has_bf16():
        processor.say_bf16_is_emulated()
        return torch.float32
    return _DTYPES[precision]
