from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_reader
import numpy as np
import pytest
import transformers as hf

from tinyqa_ray.datasets.windows import Tokens

SCRIPT = Path(gpu_reader.__file__)
WITHOUT = f"""
import importlib.util, runpy, sys
absent = ("ray", "pyarrow", "onnxruntime")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in absent else found(name, package)
sys.path[:0] = [{str(SCRIPT.parent)!r}, {str(SCRIPT.parent.parent)!r}]
sys.argv = {[str(SCRIPT), "--device", "cpu", "--windows", "6", "--layers", "1", "--hidden", "64"]!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_script_needs_neither_ray_nor_arrow_and_says_what_it_left_out() -> None:
    ran = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    made = json.loads(ran.stdout)
    engines: dict[str, Any] = made["engines"]
    assert [*engines] == [gpu_reader.PLAIN, "ours, padded", "ours, unpadded"]
    assert all(each["max_difference"] < 1e-5 < each["windows_per_s"] for each in engines.values())
    assert made["spread_of_logits"] > 0.05, "logits that are all alike would show nothing"
    assert made["skipped"]["ONNX Runtime, fused"] == "No module named 'onnxruntime'"


def test_machine_without_a_gpu_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_reader.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_reader.py"])
    gpu_reader.main()
    assert capsys.readouterr().out == "gpu_reader: no CUDA device here\n"


def test_operations_are_those_of_the_products_of_real_tokens() -> None:
    config = hf.BertConfig(num_hidden_layers=1, hidden_size=4, intermediate_size=16)
    # 3 tokens: queries, keys, values and output 4 x 4 each, 4 x 16 and back; scores and sums 3 x 3 x 4 each.
    products = 3 * (4 * 16 + 2 * 64) + 2 * 3 * 3 * 4
    assert gpu_reader._operations(config, np.array([3], np.int32)) == 2 * products
    assert gpu_reader._operations(config, np.array([3, 3], np.int32)) == 4 * products


def test_lengths_lie_where_the_page_says() -> None:
    lengths = gpu_reader._windows(4096, hf.BertConfig()).lengths
    assert 40 <= lengths.min() < 60
    assert 320 < lengths.max() <= 384
    assert lengths.mean() == pytest.approx(155, abs=5)


def test_contestant_that_takes_too_long_to_compile_is_left_out_with_the_reason() -> None:
    class Slow:
        def run(self, windows: Tokens, batches: Any) -> Any:
            for batch in batches:
                zeros = np.zeros((len(batch), 400), np.float32)
                yield batch, zeros, zeros

    windows = gpu_reader._windows(4, hf.BertConfig())
    late = gpu_reader._warm(
        lambda: lambda read, until: gpu_reader._in_batches(Slow(), read, 2, until),  # type: ignore[arg-type]
        windows,
        0.0,
    )
    assert late == "compiling took too long; give more --minutes"
