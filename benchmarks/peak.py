"""The matrix peak of this machine's processor in fp32, bf16 and int8: what an engine's speed is a share of.

python benchmarks/peak.py
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import no_options, show

from tinyqa_ray.core import processor

SIZE, PRODUCTS, REPEATS = 2048, 6, 10
SECONDS = 5.0
"""Of each precision: no run begins later, so that what a processor emulates does not go on for minutes."""


def peaks(threads: int) -> dict[str, float]:
    """Operations per second, in 10⁹, of large square matrix products.

    fp32 is torch's or OpenVINO's, whichever is faster: MKL, which torch uses, leaves half of some processors
    unused. bf16 is torch's. int8 is OpenVINO's, a chain of products each requantised to int8, as in a model,
    or ONNX Runtime's, a product of integers, whichever is faster: the former has no kernels of its own for
    processors without VNNI. Empty of int8 where neither is installed. Where bf16 is emulated, its matrices
    are small.
    """
    torch.set_num_threads(threads)
    size = SIZE if processor.has_bf16() else SIZE // 8
    has_openvino = importlib.util.find_spec("openvino") is not None
    has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    fp32 = [_best(_torch_product(torch.float32, SIZE), 2 * SIZE**3)]
    if has_openvino:
        fp32.append(_best(_chain(threads, _plain), PRODUCTS * 2 * SIZE**3))
    found = {
        "fp32_gflops": max(fp32),
        "bf16_gflops": _best(_torch_product(torch.bfloat16, size), 2 * size**3),
    }
    int8 = [_best(_chain(threads, _int8), PRODUCTS * 2 * SIZE**3)] if has_openvino else []
    if has_onnx:
        int8.append(_best(_integer_product(threads), 2 * SIZE**3))
    return {**found, "int8_gops": max(int8)} if int8 else found


def _best(step: Callable[[], object], operations: int) -> float:
    """The fastest of several runs: a peak is what the processor can do undisturbed."""
    until = time.perf_counter() + SECONDS
    step()
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and time.perf_counter() < until):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return round(operations / min(taken) / 1e9, 1)


def _torch_product(dtype: torch.dtype, size: int) -> Callable[[], object]:
    one, two = (torch.randn(size, size).to(dtype) for _ in range(2))
    return lambda: one @ two


def _chain(threads: int, products: Callable[[Any], Any]) -> Callable[[], object]:
    """Products of OpenVINO, each of the one before and a constant."""
    import openvino
    from openvino import opset13 as op

    values = op.parameter([SIZE, SIZE], np.float32)
    compiled = openvino.Core().compile_model(
        openvino.Model([products(values)], [values]),
        "CPU",
        {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"},
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(1).normal(size=(SIZE, SIZE)).astype("f4")))
    infer: Callable[[], object] = request.infer
    return infer


def _plain(values: Any) -> Any:
    from openvino import opset13 as op

    weights = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype("f4") / np.sqrt(SIZE, dtype="f4")
    for _ in range(PRODUCTS):
        values = op.matmul(values, op.constant(weights), False, True)
    return values


def _int8(values: Any) -> Any:
    from openvino import opset13 as op

    def quantised(values: Any, limit: float) -> Any:
        low, high = np.float32(-limit), np.float32(limit)
        return op.fake_quantize(values, low, high, low, high, 256)

    integers = np.random.default_rng(0).integers(-127, 128, (SIZE, SIZE)).astype(np.int8)
    weights = op.multiply(op.convert(op.constant(integers), "f32"), np.full((SIZE, 1), 0.01, np.float32))
    made = quantised(values, 1.28)
    for _ in range(PRODUCTS):
        made = quantised(op.matmul(made, weights, False, True), 10.0)
    return made


def _integer_product(threads: int) -> Callable[[], object]:
    """ONNX Runtime's product of bytes and a constant of bytes, with sums of 32 bits."""
    import onnx
    import onnxruntime

    helper, random = onnx.helper, np.random.default_rng(0)
    weights = random.integers(-64, 65, (SIZE, SIZE)).astype(np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["values", "weights"], ["sums"])],
        "product",
        [helper.make_tensor_value_info("values", onnx.TensorProto.UINT8, [SIZE, SIZE])],
        [helper.make_tensor_value_info("sums", onnx.TensorProto.INT32, [SIZE, SIZE])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = {"values": random.integers(0, 256, (SIZE, SIZE)).astype(np.uint8)}
    return lambda: session.run(None, values)


def main() -> None:
    """Print the peaks with as many threads as torch takes."""
    no_options(__doc__)
    show("peak", {"threads": torch.get_num_threads(), **peaks(torch.get_num_threads())})


if __name__ == "__main__":
    main()
