"""Gradients of matrices exchanged in low rank, with error feedback (PowerSGD, arXiv 1905.13727).

The workers' mean of a gradient M ``(n, m)`` is sent as two thin matrices: ``P = mean(M Q)``, made
orthonormal, and ``Q = mean(M' P)``, which is also where the next step begins (its warm start). All take
``P Q'`` for the gradient. What it misses of a worker's own M is that worker's error, and is added to its
next gradient.

torch has a hook for this too. This one keeps its state by names of parameters rather than by buckets, so that
it can be saved and loaded; in units of the gradient, so that it outlives changes of the loss scale; and
apart from steps that overflow, which would leave infinities in it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

_LEAST_SAVING = 2
"""Matrices that would not shrink by this factor are sent as they are."""
_SHIFT = 1e-6
"""Added to a matrix's squared singular values, as a share of their mean, so that its factor exists."""


class PowerSGD:
    """A communication hook of DistributedDataParallel, and its state."""

    def __init__(self, names: Mapping[nn.Parameter, str], rank: int, scale: Callable[[], Tensor]) -> None:
        """Exchange gradients in ``rank``.

        Args:
            names: name of each parameter, by which state is kept.
            rank: number of columns of P and Q.
            scale: what gradients are multiplied by in this step, a scalar: fp16's loss scale, or 1.
        """
        self.names, self.rank, self.scale = dict(names), rank, scale
        self.errors: dict[str, Tensor] = {}
        """Of this worker, by parameter: what was not sent yet, ``(n, m)``."""
        self.bases: dict[str, Tensor] = {}
        """Q of the last step by parameter, ``(m, rank)``; the same on all workers."""

    # DDP compares the annotations of a hook with types, and would refuse them as strings.
    def hook(self, state, bucket):  # type: ignore[no-untyped-def]
        """Replace a bucket's gradients by the mean over workers."""
        thin: dict[str, Tensor] = {}
        plain: list[Tensor] = []
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
            matrix = gradient.flatten(1) if gradient.ndim > 1 else gradient
            if self._is_worth_it(matrix.shape):
                thin[self.names[parameter]] = matrix
            else:
                plain.append(gradient)
        _average(plain)
        if thin:
            self._exchange(thin)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def _is_worth_it(self, shape: Sequence[int]) -> bool:
        return len(shape) == 2 and sum(shape) * self.rank * _LEAST_SAVING < math.prod(shape)

    def _exchange(self, gradients: Mapping[str, Tensor]) -> None:
        """Replace gradients, views ``(n, m)`` of the bucket, by the mean over workers in low rank."""
        scale = self.scale()
        for name, gradient in gradients.items():
            gradient.div_(scale)
            if name in self.errors:
                gradient.add_(self.errors[name])
        bases = [self._basis(name, gradient) for name, gradient in gradients.items()]
        lefts = [gradient @ basis for gradient, basis in zip(gradients.values(), bases, strict=True)]
        _average(lefts)
        lefts = orthonormal(lefts)
        rights = [gradient.T @ left for gradient, left in zip(gradients.values(), lefts, strict=True)]
        _average(rights)
        for (name, gradient), basis, left, right in zip(gradients.items(), bases, lefts, rights, strict=True):
            sent = left @ right.T
            # Where a worker overflowed in fp16, all see it here, and what they keep stays as it was. The
            # choice is made on the device, so that the host need not wait for it.
            finite = right.isfinite().all()
            missed = gradient - sent
            kept = self.errors.get(name)
            self.errors[name] = torch.where(finite, missed, 0.0 if kept is None else kept)
            self.bases[name] = torch.where(finite, right, basis)
            torch.mul(sent, scale, out=gradient)

    def _basis(self, name: str, gradient: Tensor) -> Tensor:
        """Q of the last step; at first columns drawn by the parameter's name, the same on all workers."""
        kept = self.bases.get(name)
        if kept is not None and kept.shape[1] == self.rank:
            return kept
        drawn = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randn(gradient.shape[1], self.rank, generator=drawn).to(gradient)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint keeps of this worker."""
        return {"errors": self.errors, "bases": self.bases}

    def load(self, states: Sequence[Mapping[str, Mapping[str, Tensor]]], device: torch.device) -> None:
        """Go on from ``state``: this worker's own, or those of all workers if there were more or fewer.

        Each worker then takes the mean of their errors, so that the mean over workers, which is what is still
        to be learned, stays the same.
        """
        self.bases = {name: tensor.to(device) for name, tensor in states[0]["bases"].items()}
        self.errors = {
            name: torch.stack([state["errors"][name] for state in states]).mean(0).to(device)
            if len(states) > 1
            else tensor.to(device)
            for name, tensor in states[0]["errors"].items()
        }


def orthonormal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices ``(n, r)`` with the same columns' space and, but for rounding, orthonormal columns.

    By Cholesky's factor of ``P'P``, which is ``(r, r)`` whatever n is, so that those of all matrices are
    factored in one call. Directions of P that are next to nothing come out shorter than 1, never longer.
    """
    squares = torch.stack([matrix.T @ matrix for matrix in matrices]).double()
    mean = squares.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    unit = torch.eye(squares.shape[1], dtype=squares.dtype, device=squares.device)
    tiny = torch.finfo(torch.float32).tiny
    factors = torch.linalg.cholesky_ex(squares + (_SHIFT * mean + tiny) * unit).L
    inverses = torch.linalg.solve_triangular(factors, unit.expand_as(factors), upper=False).mT
    return [matrix @ inverse.to(matrix) for matrix, inverse in zip(matrices, inverses, strict=True)]


def _average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their mean over workers, in one exchange."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).div_(dist.get_world_size())
    dist.all_reduce(flat)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))
