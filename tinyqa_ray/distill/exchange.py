"""What the workers of data parallelism send each other in a step, and how few bytes it may take.

Gradients are averaged by DistributedDataParallel (DDP) while the backward pass goes on: as they are, in half
precision, or in low rank. Those of the word embeddings, most of a small student's parameters, stand apart: a
step touches a few thousand of their rows, and only these are sent, after the backward pass. Which they are,
every worker knows beforehand: neither the workers nor host and device need to ask each other.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.objectives import DistillationModule
from tinyqa_ray.distill.power_sgd import PowerSGD
from tinyqa_ray.distill.session import Session

STATE = "exchange-{rank}.pt"
"""File of a checkpoint: what a worker keeps of its gradients in low rank."""
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}
_log = logging.getLogger(__name__)


class Exchange:
    """The module of one worker, whose gradients are the mean over all workers after ``finish``."""

    def __init__(
        self,
        module: DistillationModule,
        config: DistillConfig,
        session: Session,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.session = session
        self.rows: _Rows | None = None
        self.power: PowerSGD | None = None
        words = _lookup(module) if session.world_size > 1 and config.embedding_gradients != "dense" else None
        if words is not None:
            words.requires_grad_(False)  # DDP averages what is trained at the time that it wraps a module
        self.wrapped = session.wrap(module)
        if words is not None:
            words.requires_grad_(True)
            dtypes = {"none": torch.float32, "powersgd": torch.bfloat16, **_HALF}
            self.rows = _Rows(words, dtypes[config.gradient_compression])
        if not isinstance(self.wrapped, DistributedDataParallel):
            return
        _lay_out_buckets(self.wrapped)
        if config.gradient_compression == "powersgd":
            names = {parameter: name for name, parameter in module.named_parameters()}
            one = torch.ones((), device=session.device)
            self.power = PowerSGD(names, config.powersgd_rank, lambda: scaler.scale(one))
            self.wrapped.register_comm_hook(None, self.power.hook)
        elif config.gradient_compression != "none":
            self.wrapped.register_comm_hook(_HALF[config.gradient_compression], _in_half_precision)

    def finish(self, words: Tensor | None) -> None:
        """Average what the backward pass of a step left: rows of word embeddings, if they stand apart.

        Args:
            words: ids of the tokens that any worker's windows hold, ``(W,)``, the same on all workers.
        """
        if self.rows is not None:
            assert words is not None
            self.rows.average(words)

    def save(self, folder: Path) -> None:
        """Write this worker's part."""
        if self.power is not None:
            torch.save(self.power.state(), folder / STATE.format(rank=self.session.rank))

    def load(self, folder: Path) -> None:
        """Load what ``save`` wrote; errors are shared out anew where the number of workers has changed."""
        files = sorted(folder.glob(STATE.format(rank="*")))
        if not files:
            return
        if self.power is None:
            if self.session.rank == 0:
                _log.warning("what compression left to be sent by %d workers is dropped", len(files))
            return
        if len(files) == self.session.world_size:
            files = [folder / STATE.format(rank=self.session.rank)]
        elif self.session.rank == 0:
            _log.warning(
                "the errors that compression left on %d workers are shared out among %d",
                len(files),
                self.session.world_size,
            )
        states = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
        self.power.load(states, self.session.device)


class _Rows:
    """The gradient of a word embedding, averaged over workers row by row.

    Rows of tokens that no worker's windows hold have no gradient; their moments decay in AdamW as always.
    """

    def __init__(self, weight: nn.Parameter, dtype: torch.dtype) -> None:
        """Send rows of ``weight``'s gradient as ``dtype``."""
        self.weight, self.dtype = weight, dtype

    def average(self, rows: Tensor) -> None:
        gradient = self.weight.grad
        assert gradient is not None
        values = gradient[rows].div_(dist.get_world_size()).to(self.dtype)
        dist.all_reduce(values)
        gradient[rows] = values.to(gradient.dtype)


# DDP compares the annotations of a hook with types, and would refuse them as strings. Its own hook for bf16
# is for NCCL only.
def _in_half_precision(state, bucket):  # type: ignore[no-untyped-def]
    """Average a bucket of gradients, sent as the dtype ``state``, while the backward pass goes on."""
    buffer = bucket.buffer()
    narrow = (buffer / dist.get_world_size()).to(state)

    def widened(_: object) -> Tensor:
        return cast("Tensor", buffer.copy_(narrow))

    return dist.all_reduce(narrow, async_op=True).get_future().then(widened)


def _lookup(module: DistillationModule) -> nn.Parameter | None:
    """The weight of the student's word embeddings, if it is trained and used to look up rows only."""
    embedding = module.student.get_input_embeddings()
    weight = embedding.weight if isinstance(embedding, nn.Embedding) else None
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
        return None
    held = [own for part in module.modules() for own in part.parameters(recurse=False) if own is weight]
    return weight if len(held) == 1 else None


def _lay_out_buckets(wrapped: DistributedDataParallel) -> None:
    """Let DDP lay out its buckets now, by a backward pass of zeros.

    DDP lays them out once more after its first backward pass. A sum over workers depends on it in its last
    bits: the first step of a resumed run would differ from the same step of a run that was never stopped.
    """
    module = wrapped.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def zero(given: Tensor) -> Tensor:
        return torch.stack([parameter.sum() * given for parameter in trained]).sum()

    module.forward = zero
    wrapped(torch.zeros((), device=trained[0].device)).backward()
    del module.forward
    for parameter in trained:
        parameter.grad = None
