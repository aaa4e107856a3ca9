from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import ABLE, LENGTHS, UNABLE, furthest, model, windows

from tinyqa_ray.core import processor
from tinyqa_ray.engines import packed
from tinyqa_ray.engines.torch_engine import TorchEngine

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()),
    reason="this torch has no oneDNN, or no MKL that it would stand in for",
)
FAMILIES = {**ABLE, **UNABLE}
READ = windows(*LENGTHS)


def packed_layers(network: torch.nn.Module) -> int:
    return sum(isinstance(each, packed.PackedLinear) for each in network.modules())


@pytest.fixture
def slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that MKL leaves half unused."""
    monkeypatch.setattr(processor, "is_slowed_by_mkl", lambda: True)


@pytest.mark.usefixtures("slowed")
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_packed_weights_are_those_of_the_model(family: str) -> None:
    plain, network = TorchEngine(model(FAMILIES[family]), device="cpu"), model(FAMILIES[family])
    engine = TorchEngine(network, device="cpu", owns_model=True)
    assert engine.name == "torch float32 on cpu, weights packed"
    assert packed_layers(network) >= 1
    for budget in (4096, 1):
        expected = plain.logits(READ, budget)
        scale = max(abs(row).max() for side in expected for row in side)
        assert furthest(engine.logits(READ, budget), expected) < 1e-5 * max(1.0, scale)


@pytest.mark.usefixtures("slowed")
def test_weights_are_counted_as_before() -> None:
    plain, engine = (
        TorchEngine(model(ABLE["bert"]), device="cpu", owns_model=owns) for owns in (False, True)
    )
    assert engine.parameters == plain.parameters


@pytest.mark.usefixtures("slowed")
@pytest.mark.parametrize(
    ("dtype", "owns", "why"),
    [
        (torch.float32, False, "others use the model too"),
        (torch.bfloat16, True, "bf16 is oneDNN's as it is"),
    ],
)
def test_weights_stay_as_they_are_where_they_must(dtype: torch.dtype, owns: bool, why: str) -> None:
    network = model(ABLE["bert"]).to(dtype)
    engine = TorchEngine(network, device="cpu", owns_model=owns)
    assert packed_layers(network) == 0, why
    assert "packed" not in engine.name


def test_weights_stay_as_they_are_on_processors_that_mkl_serves_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "is_slowed_by_mkl", lambda: False)
    network = model(ABLE["bert"])
    assert TorchEngine(network, device="cpu", owns_model=True).name == "torch float32 on cpu"
    assert packed_layers(network) == 0


def broken(self: packed.PackedLinear, values: torch.Tensor) -> torch.Tensor:
    return values.new_full((*values.shape[:-1], self.out_features), 0.01)


def absent(self: packed.PackedLinear, values: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("there is no such operator")


@pytest.mark.usefixtures("slowed")
@pytest.mark.parametrize("forward", [broken, absent])
def test_model_is_read_as_before_where_packing_fails(monkeypatch: pytest.MonkeyPatch, forward: Any) -> None:
    network = model(ABLE["roberta"])
    expected = TorchEngine(network, device="cpu").logits(READ)
    monkeypatch.setattr(packed.PackedLinear, "forward", forward)
    engine = TorchEngine(network, device="cpu", owns_model=True)
    assert engine.name == "torch float32 on cpu"
    assert furthest(engine.logits(READ), expected) == 0.0
