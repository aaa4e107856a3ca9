"""What the training loop knows of its surroundings; Ray Train's and an in-process one."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Session(Protocol):
    """One worker's view: who it is, how it shares gradients, where its checkpoints go."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on this worker's device, its gradients averaged over workers."""

    def total(self, values: Tensor) -> Tensor:
        """Values summed over workers."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest checkpoint, None when there is none."""

    def checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Keep what rank 0 wrote into ``folder``, in place of the checkpoint before.

        Every rank calls it equally often.
        """


class LocalSession:
    """One worker, in this process: tests, notebooks, and machines without Ray."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.rank, self.world_size = 0, 1
        self.device = torch.device(device)
        self._folder = folder

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the session's device."""
        return module.to(self.device)

    def total(self, values: Tensor) -> Tensor:
        """The values: there is one worker."""
        return values

    def latest(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest whole checkpoint."""
        found = sorted(path for path in self._folder.glob("step-*") if path.suffix != ".tmp")
        return nullcontext(found[-1] if found else None)

    def checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Move the folder into place, then delete the checkpoints before it."""
        earlier = list(self._folder.glob("step-*"))
        target = self._folder / f"step-{metrics['step']:09d}"
        temporary = target.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder, temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for path in earlier:
            if path != target:
                shutil.rmtree(path, ignore_errors=True)


class RaySession:
    """A worker of Ray Train, in its own process, with torch.distributed set up by Ray."""

    def __init__(self) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the worker's device, under DistributedDataParallel when there are others."""
        import ray.train.torch

        wrapped: nn.Module = ray.train.torch.prepare_model(module)
        return wrapped

    def total(self, values: Tensor) -> Tensor:
        """Values summed over workers."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest checkpoint of this run, also of an earlier attempt."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return nullcontext(None)
        folder: AbstractContextManager[Any] = checkpoint.as_directory()
        return _AsPath(folder)

    def checkpoint(self, folder: Path, metrics: dict[str, Any]) -> None:
        """Upload rank 0's folder to the run's storage."""
        import ray.train

        kept = ray.train.Checkpoint.from_directory(str(folder)) if self.rank == 0 else None
        ray.train.report(metrics, checkpoint=kept)


class _AsPath(AbstractContextManager[Path | None]):
    def __init__(self, folder: AbstractContextManager[Any]) -> None:
        self._folder = folder

    def __enter__(self) -> Path:
        return Path(self._folder.__enter__())

    def __exit__(self, *error: Any) -> None:
        self._folder.__exit__(*error)
