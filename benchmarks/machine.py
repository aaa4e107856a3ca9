"""The machine a figure was taken on, and how benchmarks print."""

import argparse
import json
import os
import platform
from typing import Any

from tinyqa_ray.core import processor, version


def machine() -> dict[str, Any]:
    """Processor, what it has (see ``processor.features``), cores and versions."""
    info = processor.CPU_INFO
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "has": sorted(processor.features()),
        **version.versions(),
    }


def no_options(about: str | None) -> None:
    """Read the command line of a script without options: only ``--help`` is there, which ends it."""
    argparse.ArgumentParser(description=about).parse_args()


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one JSON line."""
    print(json.dumps({"benchmark": name, **figures, "machine": machine()}))
