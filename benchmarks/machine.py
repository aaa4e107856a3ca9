"""The machine a figure was taken on, and how benchmarks print."""

import json
import os
import platform
from pathlib import Path
from typing import Any

from tinyqa_ray import runs


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "isa": [
            flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags
        ],
        **runs.versions(),
    }


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one JSON line."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}))
