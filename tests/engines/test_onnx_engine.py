from __future__ import annotations

import pytest

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines.onnx_engine import providers_of

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def names(device: str, available: list[str]) -> list[str]:
    return [each if isinstance(each, str) else each[0] for each in providers_of(device, available)]


def test_device_chooses_providers_and_what_one_cannot_run_the_next_does() -> None:
    every = [TENSORRT, CUDA, CPU]
    assert names("cpu", every) == [CPU]
    assert names("cuda", every) == [CUDA, CPU]
    assert names("tensorrt", every) == [TENSORRT, CUDA, CPU]
    assert providers_of("cuda:1", every)[0] == (CUDA, {"device_id": 1})


@pytest.mark.parametrize(
    ("device", "complaint"),
    [
        ("cuda", "the installed ONNX Runtime has no CUDAExecutionProvider; pip install onnxruntime-gpu"),
        ("tensorrt", "has no TensorrtExecutionProvider"),
        ("cuda:x", "device is 'cuda:x'; give 'auto'"),
        ("tpu", "device is 'tpu'; give 'auto'"),
    ],
)
def test_device_that_is_not_there_is_refused(device: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        providers_of(device, [CPU])
