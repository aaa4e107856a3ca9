from __future__ import annotations

import pytest

from tinyqa_ray.core import packages
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.engines import devices
from tinyqa_ray.engines.exported import require_onnx_runtime, require_openvino
from tinyqa_ray.engines.onnx_engine import OnnxEngine, providers_of

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


def test_card_that_the_runtime_cannot_load_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ONNX Runtime itself goes on on the CPU, with one thread, when CUDA's libraries are missing."""
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra cpu")

    class Session:
        def get_providers(self) -> list[str]:
            return [CPU]

    monkeypatch.setattr(runtime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(runtime, "InferenceSession", lambda *_, **__: Session())
    with pytest.raises(InputError, match="ONNX Runtime cannot load its CUDAExecutionProvider"):
        OnnxEngine("model.onnx", None, device="cuda")


def test_library_that_does_not_load_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libgomp.so.1: no such file")

    monkeypatch.setattr("importlib.import_module", broken)
    monkeypatch.setattr(packages, "installed", lambda *_: True)
    for require, name in ((require_onnx_runtime, "onnxruntime"), (require_openvino, "openvino")):
        with pytest.raises(
            InputError, match=rf"does not load \(libgomp.*pip install --force-reinstall {name}"
        ):
            require()


def test_cores_are_no_more_than_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr(devices, "usable_cores", lambda: 2)
    assert devices.usable_lanes() == 2, "in a container that has a quota"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert devices.usable_lanes() == 1
