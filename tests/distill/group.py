"""Several workers of one training run, as processes of this machine, without Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peers.group_session import GroupSession
from torch import multiprocessing, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import WindowData, micro_batch_parts
from tinyqa_ray.distill.feed import StepInput, step_input
from tinyqa_ray.distill.loop import build, train, train_step
from tinyqa_ray.distill.precision import agreed_dtype
from tinyqa_ray.distill.session import Session, Write
from tinyqa_ray.distill.strategies import DataParallel
from tinyqa_ray.evaluate import measure
from tinyqa_ray.teacher_logits.window_dataset import window_files


def run(workers: int, work: Callable[..., None], *arguments: Any) -> None:
    """Run ``work(*arguments)`` in every process of a gloo group.

    The processes are forks of one that has imported all this, which takes seconds and is done once.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([__name__, "transformers.models.bert.modeling_bert"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(
        _worker, (workers, port, work, arguments), nprocs=workers, start_method="forkserver"
    )


def _worker(
    rank: int, workers: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(workers)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    work(*arguments)
    dist.destroy_process_group()


def train_in_group(config: DistillConfig, folder: Path) -> None:
    """A whole run."""
    train(config, GroupSession(folder))


def train_and_measure(config: DistillConfig, folder: Path, output: Path) -> None:
    """A whole run whose figures on dev are in ``output/dev``; each rank notes how many questions it read."""
    read = 0
    whole = measure.read

    def counted(reader: Any, asked: Sequence[Any], *rest: Any) -> Any:
        nonlocal read
        read += len(asked)
        return whole(reader, asked, *rest)

    measure.read = counted
    session = GroupSession(folder)
    train(config, session, None, str(output / "dev"))
    np.save(output / f"read-{session.rank}.npy", read)


def train_until(config: DistillConfig, folder: Path, step: int) -> None:
    """A run whose workers die once the checkpoint of ``step`` is kept."""

    class Dying(GroupSession):
        def checkpoint(self, write: Write, metrics: dict[str, Any]) -> None:
            super().checkpoint(write, metrics)
            if metrics["step"] == step:
                raise RuntimeError(f"killed at {step}")

    train(config, Dying(folder))


def train_and_resume(configs: Sequence[DistillConfig], folder: Path, step: int) -> None:
    """Of each config a whole run, and one that is killed at ``step`` and goes on: ``0-whole``, ``0-half``."""
    for number, config in enumerate(configs):
        train(config, GroupSession(folder / f"{number}-whole"))
        half = folder / f"{number}-half"
        with pytest.raises(RuntimeError, match=f"killed at {step}"):
            train_until(config, half, step)
        kept = sorted(file.name for file in (half / f"step-{step:09d}").glob("exchange-*"))
        files = [f"exchange-{rank}.pt" for rank in range(dist.get_world_size())]
        assert kept == (files if config.gradient_compression == "powersgd" else [])
        dist.barrier()
        train(config, GroupSession(half))


def gradients(configs: Sequence[DistillConfig], rows: Any, folder: Path) -> None:
    """Save each config's gradients of one step over the global batch ``rows``, as rank 0 has them."""
    session = GroupSession(folder)
    for number, config in enumerate(configs):
        found = gradient(config, rows, session)
        if session.rank == 0:
            torch.save(found, folder / f"{number}.pt")


class Reads(TorchDispatchMode):
    """Notes the operations for which a host waits for its device: those that give it a value or a size."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def reads_in_a_step(configs: Sequence[DistillConfig], rows: Any, folder: Path) -> None:
    """Save what the second step of each config reads of the device, and what it sends."""
    session = GroupSession(folder)
    for number, config in enumerate(configs):
        strategy = DataParallel(build(config, dtype=agreed_dtype(config, session)), config, session)
        data, parts = WindowData(window_files(config.data), 0), config.gradient_accumulation_steps
        for _ in range(2):
            given = step_input(data, rows, session, parts, with_words=strategy.needs_words)
            reads, sent = observed(strategy, given, session)
        torch.save({"reads": reads, "sent": sent}, folder / f"{number}-{session.rank}.pt")


def observed(strategy: DataParallel, given: StepInput, session: Session) -> tuple[list[str], list[int]]:
    """Take a step; what it reads of the device, and the sizes of what it sums itself."""
    reduce, sent = dist.all_reduce, list[int]()
    with Reads() as reads, pytest.MonkeyPatch.context() as patch:

        def noted(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
            sent.append(tensor.numel())
            return reduce(tensor, *rest, **options)

        patch.setattr(dist, "all_reduce", noted)
        train_step(strategy, given, session, 1e-3)
    return reads.found, sent


class Counting(nn.Module):
    """Two layers and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.second(self.first(given)).sum()
        return total


def gradients_and_buffers(folder: Path) -> None:
    """Save where a module's gradients lie after two steps, and its buffer, which is each worker's own."""
    session, module = GroupSession(folder), Counting()
    wrapped = session.wrap(module)
    module.seen.fill_(session.rank)
    for _ in range(2):
        module.zero_grad(set_to_none=True)
        wrapped(torch.ones(2, 3)).backward()
    lie = {parameter.grad.untyped_storage().data_ptr() for parameter in module.parameters()}
    torch.save({"storages": len(lie), "seen": module.seen.item()}, folder / f"{session.rank}.pt")


def gradient(config: DistillConfig, rows: Any, session: Session) -> dict[str, torch.Tensor]:
    """Gradients by parameter, before clipping."""
    module = build(config)
    strategy = DataParallel(module, config, session)
    found: dict[str, torch.Tensor] = {}

    def keep(learning_rate: float) -> torch.Tensor:
        found.update({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        return torch.tensor(1.0)

    strategy.step = keep  # type: ignore[method-assign]
    data = WindowData(window_files(config.data), 0)
    parts = micro_batch_parts(
        config.batch_size, config.gradient_accumulation_steps, config.workers, session.world_size
    )
    given = step_input(data, rows, session, parts, with_words=strategy.needs_words)
    train_step(strategy, given, session, 1e-3)
    return found
