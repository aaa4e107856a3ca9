from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyqa_ray.configs import WindowConfig
from tinyqa_ray.datasets.windows import Windower, Windows
from tinyqa_ray.engines import plain_attention
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import pretrained

openvino = pytest.importorskip("openvino", reason="needs the extra cpu")

from tinyqa_ray.engines.openvino import OpenVinoEngine  # noqa: E402  # after the check for OpenVINO
from tinyqa_ray.export.quantise import converted  # noqa: E402

WINDOW = WindowConfig(max_seq_len=96, doc_stride=24, max_query_len=24)
WRITTEN_OUT = (
    *("albert", "bert", "camembert", "distilbert", "electra", "ernie", "mobilebert", "roberta"),
    "xlm-roberta",
)
AS_IT_IS = ("big_bird", "deberta", "deberta-v2", "modernbert", "mpnet", "rembert", "roformer", "squeezebert")
CONTEXTS = ("The lighthouse was built by Ada in 1901. " * 3, "Ada.", "It stands on a rock. " * 9)


def windows_of(folder: str) -> Windows:
    windower = Windower(pretrained.load_tokenizer(folder), WINDOW)
    return windower.windows([("Who built the lighthouse?", context) for context in CONTEXTS])


def types(model: Any) -> list[str]:
    return [op.get_type_name() for op in model.get_ops()]


def logits_differ_least(network: Any, model: Any, windows: Windows) -> None:
    wanted = TorchEngine(network, device="cpu").logits(windows)
    found = OpenVinoEngine(model, network.config, threads=1).logits(windows)  # all in one padded batch
    for one, two in zip(wanted, found, strict=True):
        for ours, theirs in zip(one, two, strict=True):
            np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_attention_as_products_gives_the_logits_of_torch(family: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"tiny_{family}")
    network = pretrained.load_qa_model(folder)
    fused = converted(network, "fp32")
    plain = plain_attention.written_out(fused)
    assert plain is not None
    assert "ScaledDotProductAttention" not in types(plain)
    assert "ScaledDotProductAttention" in types(fused), "the model itself is not changed"
    logits_differ_least(network, plain, windows_of(folder))


@pytest.mark.slow
@pytest.mark.parametrize("family", [*WRITTEN_OUT, *AS_IT_IS])
def test_attention_of_a_family_is_written_out_or_stays_as_it_is(shared: Path, family: str) -> None:
    folder = str(shared / "golden/families" / family)
    network = pretrained.load_qa_model(folder)
    plain = plain_attention.written_out(converted(network, "fp32"))
    assert (plain is not None) == (family in WRITTEN_OUT)
    if plain is not None:
        cases = json.loads((Path(folder) / "cases.json").read_text(encoding="utf-8"))["cases"][:12]
        windower = Windower(pretrained.load_tokenizer(folder), WINDOW)
        windows = windower.windows([(case["question"], case["context"]) for case in cases])
        logits_differ_least(network, plain, windows)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2",), False),
        (("avx2", "avx512", "vnni"), False),
        (("avx2", "avx512", "vnni", "bf16"), True),
        (("avx2", "avx512", "vnni", "bf16", "amx"), False),
        (("dot", "bf16"), False),  # Arm
    ],
)
def test_products_pay_where_they_were_measured(
    features: tuple[str, ...], expected: bool, has: Callable[..., None]
) -> None:
    has(*features)
    assert plain_attention.pays() is expected


@pytest.mark.parametrize(("precision", "expected"), [("bf16", True), ("fp32", False)])
@pytest.mark.skipif(not plain_attention.pays(), reason="needs a processor on which products pay")
def test_engine_computes_products_where_they_pay(precision: str, expected: bool, tiny_bert: str) -> None:
    network = pretrained.load_qa_model(tiny_bert)
    engine = OpenVinoEngine(converted(network, precision), network.config, threads=1)
    kinds = {
        op.get_rt_info()["layerType"].astype(str) for op in engine._compiled.get_runtime_model().get_ops()
    }
    assert ("Softmax" in kinds) is expected


def test_attention_stays_fused_where_openvino_refuses_the_setting(
    tiny_bert: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tinyqa_ray.engines import openvino as engine

    monkeypatch.setattr(plain_attention, "NO_FUSION", {"NO_SUCH_SETTING": "YES"})
    network = pretrained.load_qa_model(tiny_bert)
    model = converted(network, "fp32")
    with caplog.at_level(logging.INFO):
        made = engine._compiled(openvino.Core(), model, plain_attention.written_out(model), {})
    assert made.create_infer_request() is not None
    assert "attention stays fused" in caplog.text


def test_a_causal_attention_stays_as_it_is() -> None:
    from openvino import opset13 as ops

    inputs = [ops.parameter([-1, 2, -1, 8], np.float32) for _ in range(3)]
    mask = ops.parameter([-1, 1, 1, -1], np.float32)
    for causal in (True, False):
        attention = ops.scaled_dot_product_attention(*inputs, mask, causal=causal)
        model = openvino.Model([attention], [*inputs, mask])
        assert (plain_attention.written_out(model) is None) is causal
