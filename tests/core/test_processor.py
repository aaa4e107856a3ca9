from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinyqa_ray.core import processor

ZEN3 = "processor\t: 0\nflags\t\t: fpu sse4_1 avx fma avx2 bmi2\n"
SKYLAKE = "flags\t\t: avx2 avx512f avx512bw avx512vl\n"
ZEN5 = "flags\t\t: avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni\n"
GRAVITON3 = "processor\t: 0\nFeatures\t: fp asimd asimddp sve i8mm bf16\n"


@pytest.fixture
def described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], frozenset[str]]]:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPU_INFO", file)

    def read(text: str) -> frozenset[str]:
        file.write_text(text)
        processor.features.cache_clear()
        return processor.features()

    yield read
    processor.features.cache_clear()


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (ZEN3, {"avx2"}),
        (SKYLAKE, {"avx2", "avx512"}),
        (ZEN5, {"avx2", "avx512", "vnni", "bf16"}),
        (GRAVITON3, {"dot", "bf16"}),
        ("", set()),
    ],
)
def test_features_are_those_that_linux_lists(
    described: Callable[[str], frozenset[str]], text: str, features: set[str]
) -> None:
    assert described(text) == features


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model name\t: AMD EPYC\nflags\t: avx2\n", "AMD EPYC"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "0x41 0xd40"),
        ("", platform.processor()),
    ],
)
def test_processor_has_a_name_on_arm_too(
    described: Callable[[str], frozenset[str]], text: str, name: str
) -> None:
    described(text)
    assert processor.name() == name


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_limit_of_the_matrix_library_is_a_limit_here(
    described: Callable[[str], frozenset[str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "avx2")
    assert described(ZEN5) == {"avx2"}
    monkeypatch.setenv(name, "AVX512_CORE_VNNI")
    assert described(ZEN5) == {"avx2", "avx512", "vnni"}
    monkeypatch.setenv(name, "ALL")
    assert described(ZEN5) == {"avx2", "avx512", "vnni", "bf16"}


@pytest.mark.parametrize(
    ("vendor", "flags", "slowed"),
    [
        ("AuthenticAMD", ZEN5, True),
        ("GenuineIntel", ZEN5, False),
        ("AuthenticAMD", ZEN3, False),
    ],
)
def test_mkl_is_slow_on_amd_with_avx512(
    described: Callable[[str], frozenset[str]], vendor: str, flags: str, slowed: bool
) -> None:
    described(f"vendor_id\t: {vendor}\n{flags}")
    processor.is_slowed_by_mkl.cache_clear()
    assert processor.is_slowed_by_mkl() is slowed
    processor.is_slowed_by_mkl.cache_clear()


@pytest.mark.parametrize(
    ("machine", "features", "saturates"),
    [
        ("x86_64", ("avx2",), True),
        ("AMD64", ("avx2", "avx512"), True),
        ("x86_64", ("avx2", "vnni"), False),
        ("aarch64", ("dot",), False),
    ],
)
def test_sums_of_bytes_saturate_on_x86_without_vnni(
    machine: str,
    features: tuple[str, ...],
    saturates: bool,
    has: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    has(*features)
    assert processor.saturates_int8() is saturates
