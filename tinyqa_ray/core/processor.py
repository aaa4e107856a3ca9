"""Which number formats this processor computes in its own instructions, and which it would emulate."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

from tinyqa_ray.core.said import say_once

CPU_INFO = Path("/proc/cpuinfo")

_FLAGS = {
    "avx2": ("avx2",),
    "avx512": ("avx512bw",),
    "vnni": ("avx512_vnni", "avx_vnni"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "amx": ("amx_int8",),
    "dot": ("asimddp",),
}
"""Linux's flags for each feature, on x86 and on Arm; one of them is enough."""

# Features that oneDNN, which multiplies matrices for torch and OpenVINO, uses under each limit of its own.
_LIMITS = {
    "SSE41": frozenset[str](),
    "AVX": frozenset[str](),
    "AVX2": frozenset({"avx2"}),
    "AVX2_VNNI": frozenset({"avx2", "vnni"}),
    "AVX2_VNNI_2": frozenset({"avx2", "vnni"}),
    "AVX512_CORE": frozenset({"avx2", "avx512"}),
    "AVX512_CORE_VNNI": frozenset({"avx2", "avx512", "vnni"}),
    "AVX512_CORE_BF16": frozenset({"avx2", "avx512", "vnni", "bf16"}),
}


@functools.cache
def features() -> frozenset[str]:
    """Instructions of this processor that matter for speed and exactness.

    They are read from Linux's ``/proc/cpuinfo``, and limited by ``ONEDNN_MAX_CPU_ISA`` (or its older name,
    ``DNNL_MAX_CPU_ISA``) as oneDNN is. On other systems they are unknown, and the set is empty.

    Returns:
        Some of ``avx2``, ``avx512``, ``vnni`` (products of bytes summed in 32 bits), ``bf16``, ``amx`` and,
        on Arm, ``dot``, the counterpart of VNNI.
    """
    flags = _first_line("flags", "Features")
    found = frozenset(name for name, names in _FLAGS.items() if any(flag in flags for flag in names))
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    return found & _LIMITS.get(limit, found)


def name() -> str:
    """The processor's name, or on Arm the numbers of its maker and part; empty where the system is silent."""
    lines = [_first_line(each) for each in ("model name", "CPU implementer", "CPU part")]
    values = (word for line in lines for word in " ".join(line).partition(":")[2].split())
    return " ".join(values) or platform.processor()


@functools.cache
def is_slowed_by_mkl() -> bool:
    """Whether MKL, which multiplies torch's matrices in fp32, leaves half of the processor's speed unused.

    It takes its AVX2 kernels on all processors of AMD, also on those where AVX-512 is twice as fast.
    """
    return "avx512" in features() and "AuthenticAMD" in _first_line("vendor_id")


def has_bf16() -> bool:
    """Whether the processor multiplies matrices in bf16; emulating it is a hundred times slower than fp32."""
    return "bf16" in features()


def saturates_int8() -> bool:
    """Whether the processor keeps sums of two products of bytes in 16 bits.

    This is so on x86 without VNNI: a sum above 32,767 becomes 32,767, and weights of more than seven bits
    give wrong results.
    """
    return platform.machine().lower() in ("x86_64", "amd64") and "vnni" not in features()


def say_bf16_is_emulated() -> None:
    """Warn, once per process, that fp32 is used instead of bf16."""
    say_once("bf16 is computed in fp32: this processor would emulate it, a hundred times slower")


def _first_line(*starts: str) -> list[str]:
    """The words of the first line of Linux's description that begins so; none on other systems."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    return next((line.split() for line in lines if line.startswith(starts)), [])
