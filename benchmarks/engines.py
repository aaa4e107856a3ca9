"""Windows per second, and F1, of every way to run a model on this CPU, in turns.

python benchmarks/engines.py --model FOLDER --output benchmarks/results/engines.json

It also decides what ``tinyqa export --format onnx`` writes: a graph fused before it is quantised, or left to
the runtime, with which of its fusions; ranges of activations from each batch (dynamic) or from calibration
(static); embeddings in int8 or not. ``cpu`` figures count CPU seconds instead of seconds, on one core: other
programs disturb them little.

What a processor without VNNI does is seen, of torch and OpenVINO, with DNNL_MAX_CPU_ISA=AVX2
OV_CPU_MAX_ISA=avx2 ATEN_CPU_CAPABILITY=avx2; ONNX Runtime's kernels cannot be limited like that.
"""

import argparse
import copy
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from machine import machine, show
from peers import inputs

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import bundled
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines import onnx_engine
from tinyqa_ray.engines.engine import Engine
from tinyqa_ray.engines.exported import PRECISION, WEIGHT_BITS
from tinyqa_ray.engines.onnx_engine import OnnxEngine
from tinyqa_ray.engines.openvino import OpenVinoEngine
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.evaluate import measure
from tinyqa_ray.export.onnx_format import quantise_onnx, write_onnx
from tinyqa_ray.export.quantise import converted, quantised
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.settings import read_settings
from tinyqa_ray.reader.reader import Reader

CALIBRATION_WINDOWS = 64


def main() -> None:
    """Make every form, time them in turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=bundled.MODEL)
    parser.add_argument("--data", default=bundled.asset("squad2_dev.json"), help="SQuAD JSON to measure on")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--variants", action="store_true", help="with the forms that the export does not write"
    )
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    quiet_models()
    logging.disable(logging.WARNING)  # of the quantiser
    torch.set_num_threads(cores(1))
    asked = measure.questions_of(arguments.data)[: arguments.questions]
    network = pretrained.load_qa_model(arguments.model)
    windower = Windower(pretrained.load_tokenizer(arguments.model), WindowConfig())
    with tempfile.TemporaryDirectory() as folder:
        engines = dict(every(network, windower, Path(folder), variants=arguments.variants))
    settings = read_settings(arguments.model)
    figures: dict[str, dict[str, float]] = {}
    for name, engine in engines.items():
        readings, _ = measure.read(Reader(engine, windower, settings), asked, 30)
        scored = measure.Scored.of(asked, readings).summary(settings.no_answer_threshold)
        figures[name] = {"f1": round(scored.f1, 2), "forced_f1": round(scored.forced_f1 or 0.0, 2)}
    windows = windower.windows([(each.question.question, each.context) for each in asked])
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(arguments.repeats):
        for name, engine in engines.items():
            began = time.perf_counter(), time.process_time()
            engine.logits(windows)
            taken[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    for name, each in taken.items():
        seconds, cpu_seconds = (min(column) for column in zip(*each, strict=True))
        figures[name]["windows_per_s"] = round(len(windows) / seconds, 1)
        figures[name]["windows_per_cpu_s"] = round(len(windows) / cpu_seconds, 1)
    for mine in figures.values():
        for label, other in (("torch_fp32", "torch fp32"), ("openvino_int8", "OpenVINO int8")):
            mine[f"to_{label}"] = round(mine["windows_per_s"] / figures[other]["windows_per_s"], 2)
            mine[f"cpu_to_{label}"] = round(
                mine["windows_per_cpu_s"] / figures[other]["windows_per_cpu_s"], 2
            )
    made = {
        "model": Path(arguments.model).name,
        "questions": len(asked),
        "windows": len(windows),
        "mean_tokens": round(float(np.mean(windows.lengths)), 1),
        "threads": torch.get_num_threads(),
        "engines": figures,
    }
    if arguments.output:
        text = json.dumps({"benchmark": "engines", **made, "machine": machine()}, indent=2)
        Path(arguments.output).write_text(text + "\n")
    show("engines", made)


def every(network: Any, windower: Windower, folder: Path, *, variants: bool) -> Iterator[tuple[str, Engine]]:
    """The engines by name; files of those that need one lie in ``folder`` until they are loaded."""
    config = network.config
    yield "torch fp32", TorchEngine(network, device="cpu")
    loaded = TorchEngine(copy.deepcopy(network), device="cpu", owns_model=True)
    if "packed" in loaded.name:  # it is not on every processor
        yield "torch fp32, weights packed", loaded
    samples = list(inputs.calibration(network, windower, CALIBRATION_WINDOWS))
    for precision in ("fp32", "bf16"):
        yield f"OpenVINO {precision}", OpenVinoEngine(converted(network, precision), config)
    yield "OpenVINO int8", OpenVinoEngine(quantised(converted(network, "int8"), samples, []), config)
    plain, int8 = folder / "plain.onnx", folder / "int8.onnx"
    write_onnx(network, plain)
    quantise_onnx(plain, int8, [], samples)
    yield "ONNX fp32", OnnxEngine(plain, config)
    yield "ONNX int8", OnnxEngine(int8, config)
    if variants:
        with mock.patch.object(onnx_engine, "_SLOW_ON_CPUS", []):
            yield "ONNX int8, all fusions", OnnxEngine(int8, config)
        for name, file in _variants(plain, samples, config, folder):
            yield name, OnnxEngine(file, config)


def _variants(
    plain: Path, samples: list[dict[str, Any]], config: Any, folder: Path
) -> Iterator[tuple[str, Path]]:
    """Files that the export could write instead."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.transformers import optimizer

    floats = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    common: dict[str, Any] = {"per_channel": True, "reduce_range": True}
    fused = folder / "fused.onnx"
    made = optimizer.optimize_model(
        str(plain),
        model_type="bert",
        num_heads=config.num_attention_heads,
        hidden_size=config.hidden_size,
        opt_level=0,
    )
    made.save_model_to_file(str(fused))
    yield "ONNX fp32, fused before", _described(fused, "fp32")
    for name, source, operators in (
        ("ONNX int8, fused before", fused, ["MatMul", "Attention"]),
        ("ONNX int8, embeddings too", plain, ["MatMul", "Gather"]),
    ):
        file = folder / f"{name}.onnx"
        quantization.quantize_dynamic(
            str(source), str(file), op_types_to_quantize=operators, extra_options=floats, **common
        )
        yield name, _described(file, "int8")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    file = folder / "static.onnx"
    quantization.quantize_static(
        str(plain),
        str(file),
        Reader(),
        op_types_to_quantize=["MatMul"],
        extra_options={**floats, "MatMulConstBOnly": True},
        **common,
    )
    yield "ONNX int8, static", _described(file, "int8")


def _described(file: Path, precision: str) -> Path:
    import onnx

    model = onnx.load(str(file))
    onnx.helper.set_model_props(model, {PRECISION: precision, WEIGHT_BITS: "7"})
    onnx.save(model, str(file))
    return file


if __name__ == "__main__":
    main()
