"""The training loop: plain torch, one worker's view, the same under Ray Train and in one process."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tinyqa_ray.configs import LAYER_OBJECTIVES, DistillConfig
from tinyqa_ray.core import storage
from tinyqa_ray.core.cluster import cores, quiet_models
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.attention import attend_in_fp32
from tinyqa_ray.distill.batches import ROUND, Order, WindowData, micro_batch_parts
from tinyqa_ray.distill.compiling import check_compiler, compile_models
from tinyqa_ray.distill.dev_scores import DevScores
from tinyqa_ray.distill.feed import StepInput, fed, step_input
from tinyqa_ray.distill.metrics_log import MetricsLog
from tinyqa_ray.distill.objectives import DistillationModule
from tinyqa_ray.distill.precision import agreed_dtype
from tinyqa_ray.distill.session import Session
from tinyqa_ray.distill.strategies import Strategy, make_strategy
from tinyqa_ray.distill.students import student_from_layers
from tinyqa_ray.distill.taken import LateFigures, Taken
from tinyqa_ray.distill.windows_here import windows_here
from tinyqa_ray.engines.bucketed import BUCKET
from tinyqa_ray.models import pretrained
from tinyqa_ray.models.masks import masks_unread
from tinyqa_ray.models.soup import averaged

STATE = "state.pt"
MODEL = "model"
"""Folder of the student in a checkpoint; only the last one, and those that are measured, have it."""
FORMAT = 2
"""Format of checkpoints; those of another format are refused."""


def train(
    config: DistillConfig,
    session: Session,
    metrics_file: str | None = None,
    dev_folder: str | None = None,
) -> None:
    """Train a student from the start, or from the session's checkpoint, to its last step.

    The last checkpoint holds the student as a model folder. Random draws depend only on seed, step and rank,
    batches on seed and step, and the learning rate on the step: a resumed run takes the same steps.

    Args:
        config: the stage.
        session: this worker's surroundings.
        metrics_file: where rank 0 keeps the rows of loss, learning rate and speed, as JSON lines.
        dev_folder: where rank 0 keeps the figures of every checkpoint on ``config.dev``, if that is given;
            None measures nothing.

    Raises:
        InputError: a checkpoint that cannot be continued.
        NotFiniteError: a loss or gradient that is not finite; no checkpoint holds that step.
    """
    quiet_models()
    if session.device.type == "cpu":
        torch.set_num_threads(config.threads or cores(session.local_size))
    tokenizer = pretrained.load_tokenizer(config.student)
    if config.compile:
        check_compiler(session.device)
    with windows_here(config.data) as files:
        _train(
            config,
            session,
            tokenizer,
            WindowData(files, tokenizer.pad_token_id or 0, BUCKET if config.compile else ROUND),
            metrics_file,
            dev_folder,
        )


def _train(
    config: DistillConfig,
    session: Session,
    tokenizer: Any,
    data: WindowData,
    metrics_file: str | None,
    dev_folder: str | None,
) -> None:
    order = Order(data.lengths, config.batch_size, config.epochs, config.seed)
    parts = micro_batch_parts(
        config.batch_size, config.gradient_accumulation_steps, config.workers, session.world_size
    )
    module = build(config, session.device, agreed_dtype(config, session))
    if config.compile:
        compile_models(module)
    strategy = make_strategy(module, config, session, parts)
    metrics = MetricsLog(metrics_file if session.rank == 0 else None)
    begun = resume(session, strategy, metrics)
    figures = LateFigures(metrics, strategy, data, order.steps, config.log_steps)
    dev = None
    if config.dev is not None and dev_folder is not None:
        dev = DevScores(config, session, module.student, tokenizer, dev_folder)
        if begun:
            dev.catch_up(begun)

    def prepare(step: int) -> StepInput:
        return step_input(data, order.batch(step), session, parts, with_words=strategy.needs_words)

    with fed(prepare, range(begun, order.steps), session.device) as inputs:
        for step, given in enumerate(inputs, start=begun + 1):
            torch.manual_seed(_draw(config.seed, step - 1, session.rank))
            rate = config.learning_rate * rate_factor(config.warmup_ratio, step - 1, order.steps)
            figures.add(step, train_step(strategy, given, session, rate), rate)
            is_due = step % config.checkpoint_steps == 0 or step == order.steps
            # Asking makes the ranks wait for each other, so it is not done at every step.
            is_warned = (is_due or step % config.log_steps == 0) and session.is_warned()
            if is_due or is_warned:
                figures.settle()
                # A node that is taken away may be gone before its student is measured.
                if is_warned or dev is None:
                    save(session, strategy, metrics, tokenizer, step, order.steps, {})
                if is_due and dev is not None:
                    with metrics.paused():
                        score = dev.scored(step)
                    save(session, strategy, metrics, tokenizer, step, order.steps, score)


def build(
    config: DistillConfig, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> DistillationModule:
    """The student at the start of training, with its objectives and teacher.

    Args:
        config: the stage.
        device: where it will be trained; a CPU when not given.
        dtype: precision of the matrix products, see ``precision.agreed_dtype``.
    """
    torch.manual_seed(config.seed)  # for the weights of a new head and of projections
    student = pretrained.load_qa_model(
        config.student, new_head=True, attention_dropout=config.attention_dropout
    )
    averaged(student, config.student, config.soup_with)
    if config.student_layers is not None:
        student = student_from_layers(student, config.student_layers)
    teacher = None
    if any(name in LAYER_OBJECTIVES for name in config.objective):
        assert config.teacher is not None
        teacher = pretrained.load_qa_model(config.teacher, new_head=True)
    if dtype == torch.bfloat16 and (device is None or device.type == "cpu"):
        attend_in_fp32(student)
    return DistillationModule(student, config, teacher, dtype)


def train_step(strategy: Strategy, given: StepInput, session: Session, learning_rate: float) -> Taken:
    """One optimiser step over one global batch, launched; its figures may be read later."""
    strategy.module.train()
    sums: dict[str, torch.Tensor] = {}
    for number, part in enumerate(given.parts, start=1):
        last = number == len(given.parts)
        with masks_unread():
            terms = strategy.forward(part, last=last)
        loss = torch.stack(list(terms.values())).sum()
        strategy.backward(loss, last=last)
        for name, term in terms.items():
            sums[name] = sums.get(name, torch.zeros_like(term)) + term.detach()
    strategy.finish(given.words)
    totals = session.total(torch.stack(list(sums.values())))
    norm = strategy.step(learning_rate)
    return Taken(given.windows, tuple(sums), totals, norm, strategy.loss_scale)


def rate_factor(warmup_ratio: float, step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: rising in the warm-up, then falling to 0, both linearly."""
    rising = max(1, round(warmup_ratio * steps)) if warmup_ratio else 0
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising)


def save(
    session: Session,
    strategy: Strategy,
    metrics: MetricsLog,
    tokenizer: Any,
    step: int,
    steps: int,
    score: Mapping[str, float],
) -> None:
    """Save a checkpoint; one that is measured, and the last, holds the student as a model folder too."""
    measured = strategy.module.config.dev is not None

    def write(folder: Path) -> None:
        strategy.save(folder)
        if session.rank == 0:
            torch.save({"format": FORMAT, "step": step, "metrics": metrics.rows}, folder / STATE)
            if measured or step == steps:
                student = strategy.module.student
                weights = {name: tensor.float() for name, tensor in student.state_dict().items()}
                student.save_pretrained(folder / MODEL, state_dict=weights)
                tokenizer.save_pretrained(folder / MODEL)

    session.checkpoint(write, {"step": step, "steps": steps, **score})


def resume(session: Session, strategy: Strategy, metrics: MetricsLog) -> int:
    """Load the newest checkpoint, if there is one, and return the steps done.

    Raises:
        InputError: it has another format.
    """
    with session.latest() as folder:
        if folder is None:
            return 0
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        if state.get("format") != FORMAT:
            raise InputError(
                f"the run's checkpoint has format {state.get('format', 1)}, this version of tinyqa-ray "
                f"continues format {FORMAT}; finish the run with the version that began it, or delete "
                "its folder"
            )
        strategy.load(folder)
    metrics.resume(state["metrics"])
    return int(state["step"])


def checkpoint_rows(folder: str) -> list[dict[str, Any]]:
    """The rows of metrics that a checkpoint, local or in a store, holds."""
    file = io.BytesIO(storage.read_bytes(storage.join(folder, STATE)))
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    rows: list[dict[str, Any]] = state["metrics"]
    return rows


def _draw(seed: int, step: int, rank: int) -> int:
    """A seed for the dropout of one step on one worker."""
    return ((seed * 1_000_003 + step) * 1_009 + rank) % (1 << 62)
