from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import small_models
import torch
import transformers as hf

from tinyqa_ray.datasets.windows import Tokens
from tinyqa_ray.engines import bucketed
from tinyqa_ray.engines.torch_engine import TorchEngine

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 202,
}


def model(config: Any = None) -> Any:
    return small_models.model(config or hf.RobertaConfig(**SIZES))


def windows(*lengths: int) -> Tokens:
    draw = np.random.default_rng(3)
    ids = [draw.integers(5, 400, length).astype(np.int32) for length in lengths]
    return Tokens(ids, [np.zeros_like(each) for each in ids])


def assert_close(one: Any, other: Any) -> None:
    for mine, theirs in zip(one, other, strict=True):
        for row, wanted in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(row, wanted, atol=1e-5)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that a model reads, which is not compiled."""
    seen: list[tuple[int, ...]] = []

    def noted(model: Any, *, dynamic: bool) -> Any:
        assert not dynamic

        def call(**inputs: torch.Tensor) -> Any:
            seen.append(tuple(inputs["input_ids"].shape))
            assert all(inputs["attention_mask"].any(1)), "a window without tokens would have no attention"
            return model(**inputs)

        return call

    monkeypatch.setattr(torch, "compile", noted)
    return seen


@pytest.mark.parametrize("budget", [1, 700, 32768])
def test_batches_have_few_shapes_and_logits_stay(shapes: list[tuple[int, ...]], budget: int) -> None:
    network = model()
    lengths = [*range(3, 200, 9), 200, 1]
    engine = TorchEngine(network, device="cpu", layout="bucketed")
    assert engine.name == "torch float32 on cpu, bucketed"
    found = engine.logits(windows(*lengths), budget)
    assert {rows for rows, _ in shapes} <= set(bucketed.ROWS)
    # RoBERTa's 202 positions reach 200 tokens.
    assert {tokens for _, tokens in shapes} <= {64, 128, 192, 200}
    assert_close(found, TorchEngine(network, device="cpu").logits(windows(*lengths), budget))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 9, 22, 31, 32, 64, 65, 86, 130])
def test_parts_hold_every_window_once_and_are_at_least_half_full(rows: int) -> None:
    made = list(bucketed.parts(rows))
    assert np.concatenate([np.arange(rows)[part] for part, _ in made]).tolist() == [*range(rows)]
    sizes = [(len(np.arange(rows)[part]), filled) for part, filled in made]
    assert all(held <= filled <= 2 * held and filled in bucketed.ROWS for held, filled in sizes)


def test_window_that_is_longer_than_the_reach_is_not_cut() -> None:
    assert bucketed.rounded(130, 100) == 130
    assert bucketed.rounded(65, 1 << 30) == 128


def test_family_whose_windows_cannot_be_padded_is_not_rounded_up(shapes: list[tuple[int, ...]]) -> None:
    config = hf.ConvBertConfig(**SIZES, embedding_size=16)
    network = model(config)
    engine = TorchEngine(network, device="cpu", layout="bucketed")
    assert engine.name == "torch float32 on cpu, padded (convbert needs windows of equal length)"
    read = windows(9, 30, 30)
    assert_close(engine.logits(read), TorchEngine(network, device="cpu").logits(read))


def test_every_shape_is_compiled_although_there_are_more_than_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, ...]] = []

    def noted(graph: Any, inputs: list[Any]) -> Any:
        ids = next(each for each in inputs if torch.is_tensor(each) and each.dtype == torch.int64)
        compiled.append(tuple(ids.shape))
        return graph

    compile_model = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **given: compile_model(model, backend=noted, **given))
    network = model()
    engine = TorchEngine(network, device="cpu", layout="bucketed")
    read = windows(*[60] * 8, *[120] * 8, *[190] * 8, *[200] * 8)
    batches = [np.arange(begin, begin + rows) for begin in (0, 8, 16, 24) for rows in (1, 8)]
    filled = [np.arange(begin, begin + 8).repeat(8) for begin in (0, 8)]
    for _ in range(2):
        for batch, start, _ in engine.run(read, [*batches, *filled]):
            (_, wanted, _), *_ = TorchEngine(network, device="cpu").run(read, [batch])
            np.testing.assert_allclose(start, wanted, atol=1e-5)
    assert len(set(compiled)) == len(batches) + len(filled) > 8


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_model_gives_the_same_logits() -> None:
    network = model()
    engine = TorchEngine(network, device="cpu", layout="bucketed")
    read = windows(9, 30, 70)
    assert_close(engine.logits(read, 128), TorchEngine(network, device="cpu").logits(read, 128))
