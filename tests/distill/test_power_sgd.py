from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import group
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tinyqa_ray.distill.power_sgd import PowerSGD, orthonormal


@dataclass
class Bucket:
    """What DDP gives a hook."""

    tensors: dict[nn.Parameter, torch.Tensor]
    flat: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def parameters(self) -> list[nn.Parameter]:
        return list(self.tensors)

    def gradients(self) -> list[torch.Tensor]:
        return list(self.tensors.values())

    def buffer(self) -> torch.Tensor:
        return self.flat


def made(rank: int, scale: float = 1.0) -> tuple[PowerSGD, nn.Parameter, nn.Parameter]:
    matrix, bias = nn.Parameter(torch.zeros(24, 40)), nn.Parameter(torch.zeros(5))
    return PowerSGD({matrix: "matrix", bias: "bias"}, rank, lambda: torch.tensor(scale)), matrix, bias


def sums_of_steps(folder: Path) -> None:
    """Save what 40 steps of one gradient a worker add up to, beside the true sum; a bias beside a matrix."""
    torch.manual_seed(dist.get_rank())
    own, own_bias = torch.randn(24, 40), torch.randn(5)
    mean, mean_bias = own.clone(), own_bias.clone()
    for tensor in (mean, mean_bias):
        dist.all_reduce(tensor.div_(2))
    power, matrix, bias = made(rank=2)
    sent = torch.zeros_like(own)
    for _ in range(40):
        bucket = Bucket({matrix: own.clone(), bias: own_bias.clone()})
        power.hook(None, bucket)
        sent += bucket.tensors[matrix]
        assert torch.linalg.matrix_rank(bucket.tensors[matrix], rtol=1e-4) <= 2
        torch.testing.assert_close(bucket.tensors[bias], mean_bias)
    torch.save((sent, mean * 40), folder / f"{dist.get_rank()}.pt")


def test_what_a_step_misses_is_sent_later(tmp_path: Path) -> None:
    """The mean gradient has rank 24, and 2 of it are sent in a step."""
    group.run(2, sums_of_steps, tmp_path)
    (sent, wanted), (of_other, _) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert torch.equal(sent, of_other)
    assert float((sent - wanted).norm() / wanted.norm()) < 0.35


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker, whose mean is its own."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: None)


@pytest.mark.usefixtures("alone")
def test_overflow_leaves_no_trace_and_state_does_not_depend_on_the_loss_scale() -> None:
    gradient = torch.randn(24, 40)
    power, matrix, _ = made(rank=2)
    power.hook(None, Bucket({matrix: gradient.clone()}))
    errors, bases = power.errors["matrix"].clone(), power.bases["matrix"].clone()
    wrong = gradient.clone()
    wrong[3, 4] = float("inf")
    bucket = Bucket({matrix: wrong})
    power.hook(None, bucket)
    assert not bucket.tensors[matrix].isfinite().all()
    assert torch.equal(power.errors["matrix"], errors)
    assert torch.equal(power.bases["matrix"], bases)
    scaled, its, _ = made(rank=2, scale=1024.0)
    bucket = Bucket({its: gradient * 1024})
    scaled.hook(None, bucket)
    assert torch.equal(scaled.errors["matrix"], errors)
    torch.testing.assert_close(bucket.tensors[its] / 1024 + errors, gradient)


@pytest.mark.usefixtures("alone")
def test_errors_of_other_workers_keep_their_mean() -> None:
    states = []
    for _ in range(3):
        power, matrix, _ = made(rank=2)
        power.hook(None, Bucket({matrix: torch.randn(24, 40)}))
        states.append(power.state())
    power, *_ = made(rank=2)
    power.load(states, torch.device("cpu"))
    torch.testing.assert_close(power.errors["matrix"], sum(s["errors"]["matrix"] for s in states) / 3)


@given(rows=st.integers(4, 40), rank=st.integers(1, 4), seed=st.integers(0, 1000), size=st.floats(1e-6, 1e6))
def test_columns_become_orthonormal_and_keep_their_space(
    rows: int, rank: int, seed: int, size: float
) -> None:
    given = torch.randn(rows, rank, generator=torch.Generator().manual_seed(seed)) * size
    values = torch.linalg.svdvals(given)
    (found,) = orthonormal([given])
    assert float(torch.linalg.matrix_norm(found, 2)) < 1 + 1e-4
    if values[-1] > 0.05 * values[0]:
        torch.testing.assert_close(found.T @ found, torch.eye(rank), rtol=0, atol=2e-3)
        torch.testing.assert_close(found @ (found.T @ given), given, rtol=0, atol=float(3e-3 * values[0]))


def test_matrix_of_zeros_stays_one() -> None:
    (found,) = orthonormal([torch.zeros(8, 3)])
    assert torch.equal(found, torch.zeros(8, 3))
