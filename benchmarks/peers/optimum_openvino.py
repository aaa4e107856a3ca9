"""optimum-intel's ``OVModelForQuestionAnswering`` in int8, as NNCF quantises it there, as a contestant."""

from __future__ import annotations

import tempfile

import nncf
import numpy as np
from optimum.intel import OVConfig, OVModelForQuestionAnswering, OVQuantizationConfig, OVQuantizer
from transformers import AutoTokenizer

from peers.optimum_calls import calibration_windows, prepared
from peers.protocol import Job, Prepare, serve


def load(job: Job) -> Prepare:
    """Export, quantise (weights and activations, ranges from the calibration pairs) and compile a model."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    exported = OVModelForQuestionAnswering.from_pretrained(job["model"], export=True, compile=False)
    windows = calibration_windows(tokenizer, [tuple(pair) for pair in job["calibration"]])
    options = {"INFERENCE_NUM_THREADS": str(job["threads"]), "PERFORMANCE_HINT": "LATENCY"}
    with tempfile.TemporaryDirectory() as folder:
        OVQuantizer.from_pretrained(exported).quantize(
            calibration_dataset=nncf.Dataset(
                windows, lambda window: {name: np.array([values]) for name, values in window.items()}
            ),
            ov_config=OVConfig(quantization_config=OVQuantizationConfig(bits=8, num_samples=len(windows))),
            save_directory=folder,
        )
        model = OVModelForQuestionAnswering.from_pretrained(folder, ov_config=options)

    def forward(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        output = model(**inputs)
        return np.asarray(output.start_logits), np.asarray(output.end_logits)

    return prepared(model, tokenizer, forward)


if __name__ == "__main__":
    serve(load, ("optimum-intel", "openvino", "nncf", "transformers", "torch", "tokenizers"))
