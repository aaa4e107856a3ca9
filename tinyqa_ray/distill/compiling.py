"""Student and teacher through torch.compile, for a few lengths of windows."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.objectives import DistillationModule


def compile_models(module: DistillationModule) -> None:
    """Let the student, and the teacher beside it, be compiled at their first forward of each length.

    Names of parameters stay, so a checkpoint can be continued with or without.
    """
    module.student.compile(dynamic=False)
    if module.beside is not None:
        module.beside.teacher.compile(dynamic=False)


def check_compiler(device: torch.device) -> None:
    """Refuse a machine on which torch.compile cannot work.

    Raises:
        InputError: it lacks a C++ compiler or, for a GPU, Triton.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise InputError(
            "compile needs a C++ compiler on every machine that trains; install g++, set CXX, or leave "
            "--compile out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError("compile needs Triton on a GPU; pip install triton, or leave --compile out")
