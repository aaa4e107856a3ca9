"""Exports of tiny models of 20 families beside torch's logits: what docs/models.md says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.datasets.windows import Windower
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained

REFUSED = ("convbert", "funnel", "longformer")
CONVERTED = (
    *("albert", "bert", "big_bird", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("mobilebert", "modernbert", "mpnet", "rembert", "roberta", "roformer", "squeezebert", "xlm-roberta"),
)
WINDOW = WindowConfig(max_seq_len=96, doc_stride=24, max_query_len=24)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*CONVERTED, *REFUSED])
def test_export_gives_the_logits_of_torch_or_says_that_the_family_has_none(shared: Path, family: str) -> None:
    pytest.importorskip("openvino", reason="needs the extra cpu")
    from tinyqa_ray.engines.openvino import OpenVinoEngine
    from tinyqa_ray.export.quantise import converted

    folder = str(shared / "golden/families" / family)
    network = pretrained.load_qa_model(folder)
    if family in REFUSED:
        with pytest.raises(InputError, match=f"family {family} (cannot be exported|does not convert)"):
            converted(network, "fp32")
        return
    cases = json.loads((Path(folder) / "cases.json").read_text(encoding="utf-8"))["cases"][:12]
    windower = Windower(pretrained.load_tokenizer(folder), WINDOW)
    windows = windower.windows([(case["question"], case["context"]) for case in cases])
    exported = OpenVinoEngine(converted(network, "fp32"), network.config).logits(windows)
    for side, other in zip(TorchEngine(network, device="cpu").logits(windows), exported, strict=True):
        for mine, its in zip(side, other, strict=True):
            np.testing.assert_allclose(its, mine, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONVERTED)
def test_onnx_export_gives_the_logits_of_torch(family: str, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra cpu")
    pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    from tinyqa_ray.engines.onnx_engine import OnnxEngine
    from tinyqa_ray.export.onnx_format import write_onnx

    folder = str(shared / "golden/families" / family)
    network = pretrained.load_qa_model(folder)
    write_onnx(network, tmp_path / "model.onnx")
    cases = json.loads((Path(folder) / "cases.json").read_text(encoding="utf-8"))["cases"][:12]
    windower = Windower(pretrained.load_tokenizer(folder), WINDOW)
    windows = windower.windows([(case["question"], case["context"]) for case in cases])
    exported = OnnxEngine(tmp_path / "model.onnx", network.config).logits(windows)
    for side, other in zip(TorchEngine(network, device="cpu").logits(windows), exported, strict=True):
        for mine, its in zip(side, other, strict=True):
            np.testing.assert_allclose(its, mine, atol=1e-4)
