"""The training loop: plain torch, one worker's view, the same under Ray Train and in one process."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyqa_ray import models, storage
from tinyqa_ray.cluster import cores, quiet_models
from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import Index, Order, WindowData, micro_batches
from tinyqa_ray.distill.objectives import Trainee
from tinyqa_ray.distill.session import Session
from tinyqa_ray.distill.students import student_from_layers
from tinyqa_ray.distill.teacher_logits import window_files

STATE = "state.pt"
MODEL = "model"
"""Folder of the finished student, within the last checkpoint."""


def train(config: DistillConfig, session: Session, metrics_file: str | None = None) -> None:
    """Train a student from start, or from the session's checkpoint, to its last step.

    The last checkpoint holds the student as a model folder. Every random draw is a function of seed, step
    and rank, and every batch of seed and step: a resumed run is the same run.

    Args:
        config: the stage.
        session: this worker's surroundings.
        metrics_file: where rank 0 keeps the rows of loss, learning rate and speed, as JSON lines.
    """
    quiet_models()
    if session.device.type == "cpu":
        torch.set_num_threads(config.threads or cores(session.world_size))
    tokenizer = models.load_tokenizer(config.student)
    data = WindowData(window_files(config.data), tokenizer.pad_token_id or 0)
    order = Order(data.lengths, config.batch_size, config.epochs, config.seed)
    trainee = build(config)
    wrapped = session.wrap(trainee)
    optimizer = adamw(trainee, config)
    schedule = linear_schedule(optimizer, config, order.steps)
    log = MetricsLog(metrics_file if session.rank == 0 else None)
    step = resume(session, trainee, optimizer, schedule, log)
    while step < order.steps:
        torch.manual_seed(_draw(config.seed, step, session.rank))
        batch = order.batch(step)
        terms, grad_norm = train_step(wrapped, data, batch, optimizer, config, session)
        schedule.step()
        step += 1
        if step % config.log_steps == 0 or step == order.steps:
            tokens = int(data.lengths[batch].sum())
            rate = float(schedule.get_last_lr()[0])
            log.add(step, order.steps, terms, grad_norm, rate, len(batch), tokens)
        if step % config.checkpoint_steps == 0 and step < order.steps:
            save(session, trainee, optimizer, schedule, log, step, order.steps)
    save(session, trainee, optimizer, schedule, log, step, order.steps, tokenizer)


def build(config: DistillConfig) -> Trainee:
    """The student as the stage starts from it, with its objective and teacher."""
    torch.manual_seed(config.seed)  # of a new head and of projections
    student = models.load_qa_model(config.student, new_head=True, attention_dropout=config.attention_dropout)
    if config.student_layers is not None:
        student = student_from_layers(student, config.student_layers)
    if config.objective not in ("intermediate", "relations"):
        return Trainee(student, config, None)
    assert config.teacher is not None
    return Trainee(student, config, models.load_qa_model(config.teacher, new_head=True))


def train_step(
    wrapped: nn.Module,
    data: WindowData,
    batch: Index,
    optimizer: torch.optim.Optimizer,
    config: DistillConfig,
    session: Session,
) -> tuple[dict[str, float], float]:
    """One optimiser step over one global batch.

    Returns:
        the loss terms of the global batch, and the norm of its gradient before clipping.

    Raises:
        RuntimeError: loss or gradient is not finite; nothing was changed.
    """
    wrapped.train()
    optimizer.zero_grad(set_to_none=True)
    parts = micro_batches(batch, session.rank, session.world_size, config.accumulation)
    sums: dict[str, torch.Tensor] = {}
    for number, rows in enumerate(parts, start=1):
        last = number == len(parts)
        # Workers exchange gradients once a step, after the last part.
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = last
        terms = wrapped(data.batch(rows, batch).to(session.device))
        # Gradients are averaged over workers; the loss is already a share of the global batch's.
        (sum(terms.values()) * session.world_size).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
    totals = session.total(torch.stack(list(sums.values()))).tolist()
    norm = nn.utils.clip_grad_norm_(_trained(wrapped), config.max_grad_norm)
    if not torch.isfinite(norm) or not all(map(_finite, totals)):
        raise RuntimeError(
            f"loss {dict(zip(sums, totals, strict=True))} or gradient norm {float(norm)} is not finite, "
            f"on windows {data.window_ids(batch)}; stopped before the optimiser step: lower learning_rate"
        )
    optimizer.step()
    return dict(zip(sums, totals, strict=True)), float(norm)


def adamw(trainee: Trainee, config: DistillConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; biases and layer norms do not decay."""
    trained = _trained(trainee)
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def linear_schedule(
    optimizer: torch.optim.Optimizer, config: DistillConfig, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Up to the learning rate over the warm-up's share of the steps, then down to 0."""
    warmup = max(1, round(config.warmup * steps)) if config.warmup else 0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (steps - step) / max(1, steps - warmup)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def save(
    session: Session,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    log: MetricsLog,
    step: int,
    steps: int,
    tokenizer: Any = None,
) -> None:
    """Checkpoint the run; with a tokenizer, the finished student too."""
    with tempfile.TemporaryDirectory() as folder:
        if session.rank == 0:
            state = {
                "trainee": trainee.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "metrics": log.rows,
                "step": step,
            }
            torch.save(state, Path(folder) / STATE)
            if tokenizer is not None:
                trainee.student.save_pretrained(Path(folder) / MODEL)
                tokenizer.save_pretrained(Path(folder) / MODEL)
        session.checkpoint(Path(folder), {"step": step, "steps": steps})


def resume(
    session: Session,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    log: MetricsLog,
) -> int:
    """Load the newest checkpoint, if there is one, and return the steps done."""
    with session.latest() as folder:
        if folder is None:
            return 0
        state = torch.load(folder / STATE, map_location=session.device, weights_only=True)
    trainee.load_state_dict(state["trainee"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    log.rows = state["metrics"]
    return int(state["step"])


class MetricsLog:
    """Rows of a run's metrics; they travel with the checkpoint, so a resumed curve has no gap or repeat."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.rows: list[dict[str, float]] = []
        self._since = time.monotonic()

    def add(
        self,
        step: int,
        steps: int,
        terms: dict[str, float],
        grad_norm: float,
        learning_rate: float,
        samples: int,
        tokens: int,
    ) -> None:
        """Append a row and rewrite the file; the newest row also tells the driver how far the run is."""
        now = time.monotonic()
        before = self.rows[-1]["step"] if self.rows else 0
        pace = (step - before) / max(now - self._since, 1e-9)
        self._since = now
        row = {"step": step, "steps": steps, "loss": sum(terms.values()), **terms, "grad_norm": grad_norm}
        speed = {"samples_per_s": samples * pace, "tokens_per_s": tokens * pace}
        self.rows.append({**row, "learning_rate": learning_rate, **speed})
        if self.file is not None:
            lines = "".join(json.dumps(line) + "\n" for line in self.rows)
            storage.write_atomic(self.file, lines.encode())


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _draw(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of one step on one worker."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 62)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
