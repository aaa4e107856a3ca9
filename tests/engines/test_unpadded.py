from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import ABLE, LENGTHS, UNABLE, furthest, model, windows

from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import unpadded
from tinyqa_ray.engines.torch_engine import TorchEngine
from tinyqa_ray.models import families


@pytest.mark.parametrize("family", ABLE)
def test_logits_without_padding_equal_padded_ones(family: str) -> None:
    network = model(ABLE[family])
    padded = TorchEngine(network, device="cpu")
    engine = TorchEngine(network, device="cpu", layout="unpadded")
    assert engine.name == "torch float32 on cpu, unpadded"
    read = windows(*LENGTHS)
    expected = padded.logits(read, 4096)
    assert furthest(engine.logits(read, 4096), expected) < 1e-5
    assert furthest(engine.logits(read, 1), expected) < 1e-5, "each window alone"
    assert all(np.ptp(row) > 0.1 for row, length in zip(expected[0], LENGTHS, strict=True) if length > 3)


@pytest.mark.parametrize("family", UNABLE)
def test_family_that_needs_padding_is_padded_and_the_name_says_so(family: str) -> None:
    network = model(UNABLE[family])
    engine = TorchEngine(network, device="cpu", layout="unpadded")
    assert engine.name == f"torch float32 on cpu, padded ({family} needs padded windows)"
    read = windows(*LENGTHS)
    assert furthest(engine.logits(read, 4096), TorchEngine(network, device="cpu").logits(read, 4096)) == 0.0


def test_matrices_read_no_padding() -> None:
    network = model(ABLE["bert"])
    seen: list[torch.Size] = []
    engine = TorchEngine(network, device="cpu", layout="unpadded")

    def noted(module: torch.nn.Module, inputs: Any, _: Any) -> None:
        if isinstance(module, torch.nn.Linear):
            seen.append(inputs[0].shape)

    hook = torch.nn.modules.module.register_module_forward_hook(noted)
    engine.logits(windows(*LENGTHS), 4096)
    hook.remove()
    assert {shape[:-1] for shape in seen} == {(1, sum(LENGTHS))}


def test_model_that_was_given_stays_as_it_is_and_shares_its_weights() -> None:
    network = model(ABLE["bert"])
    engine = TorchEngine(network, device="cpu", layout="unpadded")
    assert network.config._attn_implementation == "sdpa"
    read = windows(9, 30)
    before = engine.logits(read)
    with torch.no_grad():
        network.qa_outputs.bias += 1.0
    assert furthest(engine.logits(read), before) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("wrong", ["attention", "positions"])
def test_model_whose_logits_would_be_others_is_padded(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers passes on may change with its versions."""
    if wrong == "attention":
        one_by_one = unpadded._one_by_one
        monkeypatch.setattr(
            unpadded,
            "_one_by_one",
            lambda query, key, value, bounds, *rest: one_by_one(query, key, value, bounds[::3], *rest),
        )
    else:
        monkeypatch.setattr(families, "first_position", lambda model: 1)
    engine = TorchEngine(model(ABLE["bert"]), device="cpu", layout="unpadded")
    assert engine.name == "torch float32 on cpu, padded (bert gives other logits without padding)"


def test_kernel_that_fails_leaves_windows_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Any:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(unpadded, "_one_by_one", fail)
    engine = TorchEngine(model(ABLE["bert"]), device="cpu", layout="unpadded")
    assert engine.name == "torch float32 on cpu, padded (the kernel fails: no kernel image is available)"
    assert len(engine.logits(windows(5))[0][0]) == 5


@pytest.mark.parametrize(("reach", "scaling"), [(None, 0.25), (9, 0.25), (None, 0.5)])
def test_kernel_of_a_gpu_takes_what_it_is_given(reach: int | None, scaling: float) -> None:
    """Of shapes alone, since there may be no GPU here."""
    query, key, value = (torch.empty(1, 4, 30, 16, device="meta") for _ in range(3))
    bounds = torch.empty(4, dtype=torch.int32, device="meta")
    given: dict[str, Any] = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12}
    made, _ = unpadded._attend(
        torch.nn.Identity(), query, key, value, None, scaling=scaling, sliding_window=reach, **given
    )
    assert made.shape == (1, 30, 4, 16)


def test_gpu_computes_fp32_with_padding() -> None:
    network = model(ABLE["bert"])
    assert unpadded.obstacle(network, torch.device("cuda")) == "the kernel needs fp16 or bf16"


def test_memory_that_does_not_suffice_halves_batches_without_padding_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = model(ABLE["bert"])
    engine = TorchEngine(network, device="cpu", layout="unpadded")
    read, forward = windows(*LENGTHS), engine._unpadded
    expected = engine.logits(read, 4096)

    def small(given: Tokens, batch: Any) -> torch.Tensor:
        if given.lengths[batch].sum() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        assert forward is not None
        return forward(given, batch)

    monkeypatch.setattr(engine, "_unpadded", small)
    assert furthest(engine.logits(read, 4096), expected) < 1e-5


def test_nothing_changes_on_a_cpu_unless_it_is_asked_for() -> None:
    network = model(ABLE["bert"])
    engine = TorchEngine(network, device="cpu")
    assert engine.name == "torch float32 on cpu"
    assert engine._call is network
    assert (
        furthest(
            engine.logits(windows(*LENGTHS)),
            TorchEngine(network, device="cpu", layout="padded").logits(windows(*LENGTHS)),
        )
        == 0.0
    )
