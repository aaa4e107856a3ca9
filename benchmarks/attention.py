"""OpenVINO's fused attention beside the same attention as plain matrix products, by the length of windows.

python benchmarks/attention.py [--output FILE]

Windows per second of one core, of the package's model in bf16 and in int8, in batches of equal length; the
two forms are timed in turns. ``engines.plain_attention`` says on which processors products are used.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from machine import machine, show
from peers import inputs

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core import bundled, storage
from tinyqa_ray.datasets.windows import Tokens, Windower
from tinyqa_ray.engines import plain_attention
from tinyqa_ray.engines.openvino import OpenVinoEngine
from tinyqa_ray.export.quantise import converted, quantised
from tinyqa_ray.models import pretrained

FORMS = {"fused": False, "products": True}


def main() -> None:
    """Time both forms at every length, then print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=bundled.MODEL, help="a folder or hub id")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 120, 168, 256, 384])
    parser.add_argument("--batch-tokens", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", help="JSON file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = pretrained.load_qa_model(arguments.model)
    windower = Windower(pretrained.load_tokenizer(arguments.model), WindowConfig())
    samples = list(inputs.calibration(network, windower, 50))
    models = {
        "bf16": converted(network, "bf16"),
        "int8": quantised(converted(network, "int8"), samples, [], weight_bits=8),
    }
    speeds: dict[str, dict[int, dict[str, float]]] = {}
    for precision, model in models.items():
        engines = {}
        for form, products in FORMS.items():
            with patch.object(plain_attention, "pays", lambda products=products: products):
                engines[form] = OpenVinoEngine(model, network.config, threads=1)
        speeds[precision] = {
            length: _speeds(engines, length, arguments.batch_tokens // length, arguments.rounds)
            for length in arguments.lengths
        }
    figures: dict[str, Any] = {
        "model": Path(arguments.model).name,
        "batch_tokens": arguments.batch_tokens,
        "rounds": arguments.rounds,
        "windows_per_s": speeds,
    }
    if arguments.output:
        storage.write_json(arguments.output, {"benchmark": "attention", **figures, "machine": machine()})
    show("attention", figures)


def _speeds(engines: dict[str, OpenVinoEngine], length: int, windows: int, rounds: int) -> dict[str, float]:
    """Windows per second of each form, the best of the rounds, and how many times the fused one's."""
    ids = np.random.default_rng(length).integers(1000, 20000, (windows, length))
    batch = Tokens([np.asarray(row) for row in ids], [np.zeros(length, np.int64)] * windows)
    whole = np.arange(windows)
    fastest = dict.fromkeys(engines, math.inf)
    for _ in range(rounds + 1):  # the first compiles the shape
        for form, engine in engines.items():
            began = time.perf_counter()
            list(engine.run(batch, [whole]))
            fastest[form] = min(fastest[form], time.perf_counter() - began)
    found = {form: round(windows / seconds, 1) for form, seconds in fastest.items()}
    return {**found, "ratio": round(fastest["fused"] / fastest["products"], 2)}


if __name__ == "__main__":
    main()
