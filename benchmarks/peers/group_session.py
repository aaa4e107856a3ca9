"""A worker of a torch.distributed group: several workers of a training run without Ray."""

import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from tinyqa_ray.distill.session import DDP, LocalSession, Write


class GroupSession(LocalSession):
    """A worker of an initialised group (torchrun's, say); all on a CPU, and ``folder`` is shared by all."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.local_size = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))  # torchrun sets it

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module under DistributedDataParallel, when there are other workers."""
        return nn.parallel.DistributedDataParallel(module, **DDP) if self.world_size > 1 else module

    def total(self, values: Tensor) -> Tensor:
        """Values summed over workers."""
        dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank."""
        found = [value] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        """As there: the first worker makes the folder, all write into it, and it moves it into place."""

        def with_others(folder: Path) -> None:
            dist.barrier()
            write(folder)
            dist.barrier()

        if self.rank == 0:
            super().checkpoint(with_others, metrics)
        else:
            with_others(self.folder / f"step-{metrics['step']:09d}.tmp")
        dist.barrier()
