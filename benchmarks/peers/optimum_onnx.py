"""ONNX Runtime in dynamic int8 with optimum's configuration for the processor, as a contestant."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from optimum.onnxruntime import ORTModelForQuestionAnswering, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig, QuantizationConfig
from transformers import AutoTokenizer

from peers.optimum_calls import prepared
from peers.protocol import Job, Prepare, serve


def load(job: Job) -> Prepare:
    """Export, quantise and load a model."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    with tempfile.TemporaryDirectory() as folder:
        plain, int8 = Path(folder) / "plain", Path(folder) / "int8"
        ORTModelForQuestionAnswering.from_pretrained(job["model"], export=True).save_pretrained(plain)
        ORTQuantizer.from_pretrained(plain).quantize(
            save_dir=int8, quantization_config=_configuration(set(job["has"]))
        )
        model = ORTModelForQuestionAnswering.from_pretrained(
            int8, file_name="model_quantized.onnx", session_options=options
        )

    def forward(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        output = model(**inputs)
        return np.asarray(output.start_logits), np.asarray(output.end_logits)

    return prepared(model, tokenizer, forward)


def _configuration(has: set[str]) -> QuantizationConfig:
    """Optimum's own for what the processor has, see ``processor.features``."""
    if platform.machine() in ("arm64", "aarch64"):
        return AutoQuantizationConfig.arm64(is_static=False, per_channel=True)
    if "vnni" in has:
        return AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    return AutoQuantizationConfig.avx2(is_static=False, per_channel=True)


if __name__ == "__main__":
    serve(load, ("optimum-onnx", "optimum", "onnxruntime", "transformers", "torch", "tokenizers"))
