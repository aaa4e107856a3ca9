"""The precision in which a student is trained: one for all workers, and what fp16 does where it overflows."""

from __future__ import annotations

import torch

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core import processor
from tinyqa_ray.core.said import say_once
from tinyqa_ray.distill.session import Session
from tinyqa_ray.engines.devices import native_to_card

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OVERFLOWS = 20
"""Steps in a row that may overflow in fp16; each halves the loss scale, which is then not the cause."""


class NotFiniteError(RuntimeError):
    """A loss or gradient is not finite, or fp16 overflows at any loss scale."""


def agreed_dtype(config: DistillConfig, session: Session) -> torch.dtype:
    """The precision of the matrix products, which every worker's device computes in its own instructions.

    Every worker must call it. On GPUs, ``auto`` and ``bf16`` give bf16, or fp16 if a worker's card lacks bf16
    (those before Ampere only emulate it), or fp32 if one lacks both. On CPUs, ``auto`` gives fp32, and
    ``bf16`` gives fp32 if a worker's processor lacks it; fp16 is emulated there, for trials. The first worker
    says so if a worker's device lacks what is wanted.
    """
    is_cpu = session.device.type != "cuda"
    wanted = [torch.bfloat16, torch.float16, torch.float32]
    if config.precision == "fp32" or (config.precision == "auto" and is_cpu):
        wanted = wanted[2:]
    elif config.precision == "fp16":
        wanted = wanted[1:]
    elif is_cpu:
        wanted = [torch.bfloat16, torch.float32]
    has = native_dtypes(session.device)
    lacking = session.total(
        torch.tensor([dtype not in has for dtype in wanted], device=session.device).long()
    )
    chosen = next(dtype for dtype, workers in zip(wanted, lacking.tolist(), strict=True) if not workers)
    first = int(lacking[0])
    # All cards of an older kind are what "auto" is for; some of them are worth a line.
    said = chosen != wanted[0] and (config.precision != "auto" or first < session.world_size)
    if said and session.rank == 0:
        kind = "processor" if is_cpu else "card"
        say_once(
            f"trained in {NAMES[chosen]}: {first} of {session.world_size} workers have a {kind} without "
            f"{NAMES[wanted[0]]}"
        )
    return chosen


def native_dtypes(device: torch.device) -> set[torch.dtype]:
    """The types that a device multiplies in its own instructions; fp16 on any CPU, for trials."""
    if device.type != "cuda":
        found = {torch.float32, torch.float16}
        return found | {torch.bfloat16} if processor.has_bf16() else found
    return native_to_card(device)


class Overflows:
    """Counts the steps in a row that fp16 has skipped, since their loss or gradient was not finite."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def count(self, finite: bool, loss_scale: float) -> str | None:
        """Count a step; if it is the twentieth in a row that is not finite, say so."""
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if self.in_a_row < OVERFLOWS:
            return None
        return f"fp16 overflowed in {self.in_a_row} steps in a row, the loss scale is down to {loss_scale:g}"


def overflowing(loss: torch.Tensor) -> torch.Tensor:
    """The loss for a backward pass with a loss scale: where it is not finite, so are all its gradients.

    Without it a loss may be infinite and its gradient finite, and the step would be taken.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
