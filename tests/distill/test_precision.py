from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.configs.distill import Precision
from tinyqa_ray.core import said
from tinyqa_ray.distill.precision import agreed_dtype, native_dtypes, overflowing
from tinyqa_ray.distill.session import LocalSession

CARDS = {"T4": (7, 5), "V100": (7, 0), "M60": (5, 2), "A100": (8, 0), "H200": (9, 0)}


def asked(wanted: Precision) -> DistillConfig:
    return DistillConfig(data="windows", student="student", objective=("labels",), precision=wanted)


class Workers(LocalSession):
    """One worker among several with these cards, whose votes it knows."""

    def __init__(self, cards: list[str], rank: int) -> None:
        self.cards, self.rank, self.world_size, self.local_size = cards, rank, len(cards), 1
        self.device = torch.device("cuda")

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """All workers ask for the same dtypes, the best first: as many as there are values."""
        ladder = [torch.bfloat16, torch.float16, torch.float32][-len(values) :]
        return torch.tensor([sum(CARDS[card] < _SINCE[dtype] for card in self.cards) for dtype in ladder])


_SINCE = {torch.bfloat16: (8, 0), torch.float16: (5, 3), torch.float32: (0, 0)}


def agreed(cards: list[str], wanted: Precision, monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    found = set()
    monkeypatch.setattr(torch, "tensor", _on_cpu(torch.tensor))
    for rank, card in enumerate(cards):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, card=card: CARDS[card])
        found.add(agreed_dtype(asked(wanted), Workers(cards, rank)))
    return found


def _on_cpu(tensor: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(values: object, device: object = None) -> torch.Tensor:
        return tensor(values)

    return made


@pytest.mark.parametrize(
    ("cards", "wanted", "chosen"),
    [
        (["A100", "H200"], "auto", torch.bfloat16),
        (["A100", "V100"], "auto", torch.float16),
        (["V100", "T4"], "auto", torch.float16),
        (["A100", "M60"], "auto", torch.float32),
        (["V100", "V100"], "bf16", torch.float16),
        (["A100", "A100"], "bf16", torch.bfloat16),
        (["M60", "V100"], "fp16", torch.float32),
        (["A100", "V100"], "fp32", torch.float32),
    ],
)
def test_all_workers_take_the_precision_of_the_least_capable_card(
    cards: list[str], wanted: Precision, chosen: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agreed(cards, wanted, monkeypatch) == {chosen}


def test_fall_back_is_said_once_and_with_the_number_of_workers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    said.say_once.cache_clear()
    agreed(["A100", "V100", "V100"], "auto", monkeypatch)
    assert [record.getMessage() for record in caplog.records] == [
        "trained in fp16: 2 of 3 workers have a card without bf16"
    ]
    agreed(["A100", "V100", "V100"], "bf16", monkeypatch)
    assert len(caplog.records) == 1
    caplog.clear()
    agreed(["V100", "V100"], "auto", monkeypatch)  # this is what "auto" is for
    assert not caplog.records


def test_bf16_is_not_taken_where_a_processor_would_emulate_it(
    has: Callable[..., None], tmp_path: Path
) -> None:
    session = LocalSession(tmp_path)
    has("avx2")
    assert agreed_dtype(asked("bf16"), session) == torch.float32
    has("avx2", "bf16")
    assert agreed_dtype(asked("bf16"), session) == torch.bfloat16
    assert agreed_dtype(asked("auto"), session) == torch.float32
    assert agreed_dtype(asked("fp16"), session) == torch.float16


def test_each_kind_of_device_has_its_types(has: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for card, count in (("M60", 1), ("V100", 2), ("A100", 3)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, card=card: CARDS[card])
        assert len(native_dtypes(torch.device("cuda"))) == count
    has()
    assert torch.bfloat16 not in native_dtypes(torch.device("cpu"))


@given(value=st.floats(width=32))
def test_gradients_of_a_loss_that_is_not_finite_are_not_finite(value: float) -> None:
    weight = torch.tensor(1.0, requires_grad=True)
    loss = weight + torch.tensor(value)
    overflowing(loss).backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite()) == bool(loss.isfinite())
    assert not loss.isfinite() or weight.grad == 1
