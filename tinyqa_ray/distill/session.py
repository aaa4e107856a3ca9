"""What the training loop knows of its surroundings: Ray Train, or one process."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tinyqa_ray.core import storage
from tinyqa_ray.distill.checkpoints import as_checkpoint, local_checkpoint, newest_checkpoint, seal

Write = Callable[[Path], None]
"""Writes a worker's part of a checkpoint into a folder; most workers have none."""

_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
DDP: Mapping[str, Any] = {"gradient_as_bucket_view": True, _BUFFERS: False}
"""Options of DistributedDataParallel: gradients lie where they are exchanged, and buffers, which never
change, are not sent."""


class Session(Protocol):
    """One worker's view: who it is, how it shares gradients, where its checkpoints go."""

    rank: int
    world_size: int
    local_size: int
    """Number of workers on this worker's machine."""
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on this worker's device, its gradients averaged over workers."""

    def total(self, values: Tensor) -> Tensor:
        """Values summed over workers."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, in the order of their ranks, on every worker."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """A local folder with the newest whole checkpoint, None when there is none."""

    def is_warned(self) -> bool:
        """Whether a node of the run is about to be taken away, told once; every rank must ask equally often.

        All ranks are told the same.
        """

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        """Keep what all workers write, in place of the previous checkpoint.

        Every rank must call it equally often.

        Args:
            write: called at once, with an empty folder.
            metrics: the current ``step``, the number of ``steps``, and the model's score if it was measured;
                Ray ranks a checkpoint without one below all others.
        """


class LocalSession:
    """One worker, in this process, for tests, notebooks, and machines without Ray."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        """Keep the newest checkpoint in ``folder``, as ``step-000000400``."""
        self.rank, self.world_size, self.local_size = 0, 1, 1
        self.device = torch.device(device)
        self.folder = folder

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the session's device."""
        return module.to(self.device)

    def total(self, values: Tensor) -> Tensor:
        """The values themselves, since there is one worker."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value itself, alone."""
        return [value]

    def latest(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest whole checkpoint."""
        found = sorted(path for path in self.folder.glob("step-*") if path.suffix != ".tmp")
        return nullcontext(found[-1] if found else None)

    def is_warned(self) -> bool:
        """Never: this process is warned of nothing."""
        return False

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        """Write beside the earlier checkpoints, move the new one into place, then delete the earlier ones."""
        target = self.folder / f"step-{metrics['step']:09d}"
        temporary = target.with_suffix(".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        earlier = [path for path in self.folder.glob("step-*") if path not in (target, temporary)]
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)


class RaySession:
    """A worker of Ray Train, in its own process, with torch.distributed set up by Ray."""

    def __init__(self, storage_path: str) -> None:
        """Read rank, sizes and device from Ray Train; the run's checkpoints are under ``storage_path``."""
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.local_size = context.get_local_world_size()
        self.device = ray.train.torch.get_device()
        self._storage_path = storage_path
        self._was_warned = False

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module on the worker's device, under DistributedDataParallel when there are others."""
        import ray.train.torch

        wrapped: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=dict(DDP))
        return wrapped

    def total(self, values: Tensor) -> Tensor:
        """Values summed over workers."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank."""
        found = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(found, value)
        return found

    def latest(self) -> AbstractContextManager[Path | None]:
        """The newest whole checkpoint of this run or an earlier attempt; all ranks get the same one.

        Ray's own record of it is not used: a kill may leave that file half written.
        """
        from ray.train.collective import broadcast_from_rank_zero

        found = newest_checkpoint(self._storage_path) if self.rank == 0 else None
        folder = broadcast_from_rank_zero(found)
        return nullcontext(None) if folder is None else local_checkpoint(folder)

    def is_warned(self) -> bool:
        """Whether Ray drains a node of the run.

        ``ray start --block`` does that when it is told to stop, as in a pod that is evicted, and so does
        ``ray drain-node``; a cloud's notice that a spot instance goes reaches neither by itself. Once the
        drain's time is over, Ray Train begins the run anew from its newest checkpoint.
        """
        import ray.train

        if ray.train.get_preemption_info() is None or self._was_warned:
            return False
        self._was_warned = True
        return True

    def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
        """Write to a local folder, then upload it in the background while training goes on."""
        import ray.train
        from ray.train import CheckpointUploadMode

        folder = Path(tempfile.mkdtemp(prefix="tinyqa-checkpoint-"))
        try:
            write(folder)
            seal(folder, self.rank, self.world_size, metrics)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # Ray deletes the folder once it is uploaded.
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(str(folder)),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=None if storage.is_local(self._storage_path) else self._sent,
        )

    def _sent(self, checkpoint: Any, name: str) -> Any:
        """The checkpoint in the run's store. Ray's own upload gives up after three tries."""
        target = storage.join(self._storage_path, name)
        storage.send_folder(Path(checkpoint.path), target)
        return as_checkpoint(target)
