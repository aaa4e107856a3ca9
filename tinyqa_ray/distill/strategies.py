"""How gradients become steps: plain or data-parallel AdamW, and DeepSpeed's ZeRO.

Both take losses that are shares of the global batch's loss (see ``losses``), and take the same steps.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.batches import Batch
from tinyqa_ray.distill.exchange import Exchange
from tinyqa_ray.distill.layers import Terms
from tinyqa_ray.distill.objectives import DistillationModule
from tinyqa_ray.distill.precision import NAMES, Overflows, overflowing
from tinyqa_ray.distill.session import Session

OPTIMIZER = "optimizer.pt"
"""File of a checkpoint: the trained parameters, AdamW's state and the loss scale."""
_ZERO = "zero.json"
"""File of a checkpoint of DeepSpeed's: what DeepSpeed does not keep."""
_FIRST_LOSS_SCALE = 2.0**16


class Strategy(Protocol):
    """What the training step needs of data parallelism."""

    module: DistillationModule
    overflows: Overflows
    """Steps in a row that fp16 skipped; counted by whoever reads the norm of a step."""
    needs_words: bool
    """Whether ``finish`` needs the words of a batch."""

    @property
    def loss_scale(self) -> Tensor | None:
        """What fp16 multiplies the loss by, a scalar on the device; None in other precisions."""

    def forward(self, batch: Batch, *, last: bool) -> Terms:
        """Loss terms of a micro-batch; after the ``last`` one of a step, workers exchange gradients."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss."""

    def finish(self, words: Tensor | None) -> None:
        """Exchange what is left to exchange after the last backward of a step.

        Args:
            words: ids of the tokens that any worker's windows hold in this step, ``(W,)``; None where they
                are not needed.
        """

    def step(self, learning_rate: float) -> Tensor:
        """Take an optimiser step with the gradients added since the last.

        Returns:
            their norm before clipping, a scalar on the device, so that the host need not wait for it. Where
            it is not finite, fp16 skips the step; in other precisions the weights are lost.
        """

    def save(self, folder: Path) -> None:
        """Write this worker's part of the weights and the optimiser's state."""

    def load(self, folder: Path) -> None:
        """Load what ``save`` wrote."""


def make_strategy(
    module: DistillationModule, config: DistillConfig, session: Session, parts: int
) -> Strategy:
    """The config's strategy; ``parts`` is the number of micro-batches of a worker in a step."""
    if config.strategy == "ddp":
        return DataParallel(module, config, session)
    return ZeRO(module, config, session, parts)


def adamw(module: nn.Module, config: DistillConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; biases and layer norms do not decay."""
    trained = _trained(module)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


class DataParallel:
    """AdamW on every worker, gradients averaged by DistributedDataParallel where there are several."""

    def __init__(self, module: DistillationModule, config: DistillConfig, session: Session) -> None:
        self.module, self.config, self.session = module, config, session
        scaled = module.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(session.device.type, _FIRST_LOSS_SCALE, enabled=scaled)
        self.exchange = Exchange(module, config, session, self.scaler)
        self.wrapped = self.exchange.wrapped
        self.needs_words = self.exchange.rows is not None
        self.optimizer = adamw(module, config)
        self.overflows = Overflows()
        self._one = torch.ones((), device=session.device)

    @property
    def loss_scale(self) -> Tensor | None:
        """What fp16 multiplies the loss by; ``get_scale`` would wait for the device."""
        return self.scaler.scale(self._one) if self.scaler.is_enabled() else None

    def forward(self, batch: Batch, *, last: bool) -> Terms:
        """See ``Strategy``."""
        parallel = isinstance(self.wrapped, nn.parallel.DistributedDataParallel)
        # Workers exchange gradients once a step, after the last part.
        with self.wrapped.no_sync() if parallel and not last else nullcontext():  # type: ignore[operator]
            terms: Terms = self.wrapped(batch)
            return terms

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Strategy``; undoes the average over workers."""
        loss = overflowing(loss) if self.scaler.is_enabled() else loss
        self.scaler.scale(loss * self.session.world_size).backward()  # type: ignore[no-untyped-call]

    def finish(self, words: Tensor | None) -> None:
        """See ``Strategy``."""
        self.exchange.finish(words)

    def step(self, learning_rate: float) -> Tensor:
        """See ``Strategy``."""
        _set_rate(self.optimizer, learning_rate)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(_trained(self.wrapped), self.config.max_grad_norm)
        # With fp16 an overflow skips the step and lowers the scale.
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: Path) -> None:
        """See ``Strategy``; rank 0 writes everything but what compressed gradients leave on each worker."""
        self.exchange.save(folder)
        if self.session.rank == 0:
            state = {
                "trainee": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "overflows": self.overflows.in_a_row,
            }
            torch.save(state, folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        """See ``Strategy``."""
        state = torch.load(folder / OPTIMIZER, map_location=self.session.device, weights_only=True)
        self.module.load_state_dict(state["trainee"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.exchange.load(folder)
        # Of another precision it has no state, and the scale starts anew.
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
            self.overflows.in_a_row = state.get("overflows", 0)


class ZeRO:
    """DeepSpeed's ZeRO (arXiv 1910.02054): each worker holds a part of AdamW's state and of the gradients.

    On CPUs it runs over gloo. fp16 and bf16 keep the weights in that precision, with fp32 master weights.
    """

    def __init__(
        self, module: DistillationModule, config: DistillConfig, session: Session, parts: int
    ) -> None:
        deepspeed = _deepspeed(session)
        self.module, self.session, self.parts = module, session, parts
        self.overflows, self.needs_words = Overflows(), False
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # DeepSpeed only computes the batch size from it
            "gradient_accumulation_steps": parts,
            "gradient_clipping": config.max_grad_norm,
            "zero_optimization": {"stage": int(config.strategy.removeprefix("zero"))},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            "fp16": {
                "enabled": module.autocast == torch.float16,
                "initial_scale_power": int(math.log2(_FIRST_LOSS_SCALE)),
                "hysteresis": 1,  # the first overflow halves the scale
            },
            "bf16": {"enabled": module.autocast == torch.bfloat16},
        }
        module.to(session.device)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=adamw(module, config), config=settings, dist_init_required=False
        )
        self._keep_going_at_scale_one()

    @property
    def loss_scale(self) -> Tensor | None:
        """What fp16 multiplies the loss by; DeepSpeed has it on the host."""
        return torch.tensor(float(self.engine.loss_scale())) if self.engine.fp16_enabled() else None

    def forward(self, batch: Batch, *, last: bool) -> Terms:
        """See ``Strategy``."""
        terms: Terms = self.engine(batch)
        return terms

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See ``Strategy``; undoes DeepSpeed's average over workers and micro-batches."""
        loss = overflowing(loss) if self.engine.fp16_enabled() else loss
        self.engine.backward(loss * self.session.world_size * self.parts)
        if not last:
            self.engine.step()  # only counts the micro-batch

    def finish(self, words: Tensor | None) -> None:
        """See ``Strategy``; DeepSpeed exchanges all in its backward and its step."""

    def step(self, learning_rate: float) -> Tensor:
        """See ``Strategy``; DeepSpeed gives the norm only after the step."""
        _set_rate(self.engine.optimizer, learning_rate)
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.session.device)

    def _keep_going_at_scale_one(self) -> None:
        """DeepSpeed would end the run at its least scale, 1; the overflows in a row are counted instead."""
        if self.engine.fp16_enabled():
            self.engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    def save(self, folder: Path) -> None:
        """See ``Strategy``; every rank writes its part."""
        self.engine.save_checkpoint(str(folder), tag="zero", save_latest=False)
        if self.session.rank == 0:
            own = {"precision": NAMES[self.module.autocast], "overflows": self.overflows.in_a_row}
            (folder / _ZERO).write_text(json.dumps(own))

    def load(self, folder: Path) -> None:
        """See ``Strategy``.

        Raises:
            InputError: another number of workers saved it, or it is of another precision.
        """
        saved = len(list((folder / "zero").glob("*optim_states.pt")))
        if saved != self.session.world_size:
            raise InputError(
                f"the checkpoint is DeepSpeed's, of {saved} workers, and cannot be continued with "
                f"{self.session.world_size}; run with --workers {saved}, or into another --output"
            )
        file, precision = folder / _ZERO, NAMES[self.module.autocast]
        own: dict[str, Any] = (
            json.loads(file.read_text()) if file.exists() else {"precision": precision, "overflows": 0}
        )
        if own["precision"] != precision:
            raise InputError(
                f"the checkpoint is DeepSpeed's, in {own['precision']}, and cannot be continued in "
                f"{precision}; run with --precision {own['precision']}, or into another --output"
            )
        self.engine.load_checkpoint(str(folder), tag="zero")
        self.overflows.in_a_row = own["overflows"]
        self._keep_going_at_scale_one()


def require_deepspeed() -> None:
    """Refuse to go on without DeepSpeed.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            "strategies 'zero1' and 'zero2' need DeepSpeed: pip install 'tinyqa-ray[deepspeed]', or use 'ddp'"
        )


def _deepspeed(session: Session) -> Any:
    """Import DeepSpeed, which reads the device from the environment, and make sure of a process group."""
    require_deepspeed()
    if session.device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import torch.distributed as dist

    if not dist.is_initialized():  # one worker alone
        backend = "gloo" if session.device.type == "cpu" else "nccl"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return deepspeed


def _set_rate(optimizer: Any, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _trained(module: nn.Module) -> Sequence[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
