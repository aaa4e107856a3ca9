"""How a student is taught."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tinyqa_ray.configs.checks import at_least, default, positive, share
from tinyqa_ray.configs.renamed import NEW_NAMES
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.core.stage_folder import execution

Objective = Literal["labels", "intermediate", "relations", "prediction"]
LAYER_OBJECTIVES: tuple[Objective, ...] = ("intermediate", "relations")
"""Objectives that run the teacher beside the student."""
Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student is taught: by labels, the teacher's layers, relations or predictions, or by several."""

    RENAMED = NEW_NAMES["distill"]

    data: str
    """Finished folder of windows, made by 'teacher-logits'."""
    student: str
    """Folder or hub id of the model that the student starts from."""
    soup_with: tuple[str, ...] = ()
    """Other models, trained from the same start as ``student``: the student starts from the mean of the
    weights of all (a model soup, arXiv 2203.05482)."""
    objective: tuple[Objective, ...]
    """What is taught; the losses of several objectives are summed. labels: gold spans. intermediate: the
    teacher's attention and hidden states. relations: MiniLMv2's self-attention relations. prediction: the
    teacher's logits."""
    objective_weights: tuple[float, ...] | None = None
    """Weight of each objective in the sum; 1 when not given."""
    student_layers: tuple[int, ...] | None = None
    """Layers of ``student`` to keep, counted from 0; all when not given."""
    teacher: str | None = None
    """Folder or hub id of the teacher that 'intermediate' and 'relations' run beside the student."""
    attention_maps: Literal["scores", "probabilities"] = "scores"
    """What 'intermediate' compares: attention before softmax (TinyBERT), or after it (Haystack 1)."""
    relation_layer: int | None = None
    """Teacher layer, counted from 0, whose relations the student's last layer learns; the last layer when not
    given."""
    relation_heads: int | None = None
    """Number of relation heads; that of the student's attention heads when not given."""
    prediction_loss: Literal["kl", "mse"] = "kl"
    """Distance D of 'prediction' between the span logits of student and teacher."""
    distillation_weight: float = 1.0
    """Share w of the teacher in 'prediction': w * tau^2 * D + (1 - w) * cross-entropy of the labels."""
    temperature: float = 1.0
    """Temperature tau of 'prediction'."""
    teacher_weights: tuple[float, ...] | None = None
    """Share of each teacher in 'prediction', if the windows keep several teachers apart; equal shares when
    not given."""
    epochs: float = 2.0
    """Passes over the windows."""
    batch_size: int = 32
    """Windows in one optimiser step, summed over all workers and accumulation steps."""
    gradient_accumulation_steps: int = 1
    """Forwards of each worker in one optimiser step."""
    learning_rate: float = 3e-5
    """Peak learning rate of AdamW."""
    warmup_ratio: float = 0.1
    """Share of the steps in which the learning rate rises; it then falls linearly to 0."""
    weight_decay: float = 0.01
    """AdamW's weight decay; only matrices decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    attention_dropout: float | None = None
    """Dropout of attention weights; the model's own when not given. 0 lets a CPU use its fast attention."""
    head_dropout: float = 0.0
    """Dropout between encoder and head (Haystack's ``embeds_dropout_prob``), added to the model's own."""
    strategy: Literal["ddp", "zero1", "zero2"] = "ddp"
    """How several workers train. ddp: DistributedDataParallel. zero1 and zero2: DeepSpeed's ZeRO, which
    spreads the optimiser's state (1) and also the gradients (2) over the workers; needs the extra
    'deepspeed'."""
    freeze_embeddings: bool = False
    """Keep the word embeddings of ``student`` as they are; workers then exchange no gradients of them."""
    seed: int = 42
    """Seed of the order of windows, of new heads, and of dropout."""
    dev: str | None = None
    """SQuAD 2.0 data on which each checkpoint is measured; each worker measures a part of the questions."""
    baseline: str | None = None
    """Model to compare with on ``dev`` at the end, such as the same student taught by labels alone."""
    publish: Literal["last", "best"] = "last"
    """Which student is published as ``model``: that of the last step, or the best one on ``dev``."""
    keep_best: int = execution(1)
    """Number of students, the best on ``dev``, to keep in ``best``."""
    checkpoint_steps: int = execution(200)
    """Optimiser steps between checkpoints."""
    log_steps: int = execution(5)
    """Optimiser steps between rows of ``metrics.jsonl``."""
    compile: bool = execution(False)
    """Run student and teacher through torch.compile, in lengths that are multiples of 64: worth it on a GPU,
    where launching a small student's kernels takes longer than their work. Needs a C++ compiler."""
    precision: Precision = execution("auto")  # noqa: RUF009
    """Precision of the matrix products, one for all workers. auto: fp32 on CPUs, bf16 on GPUs from Ampere on,
    fp16 with a loss scale if there is an older one (V100). bf16 falls back likewise where a GPU or processor
    would only emulate it."""
    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"] = execution("none")
    """How workers of strategy 'ddp' exchange gradients: as they are, in half precision, or in low rank, where
    what is left out is added to the next step's gradient (PowerSGD, arXiv 1905.13727). fp16 suits training in
    fp16, whose loss scale lifts small gradients; without one, those below 3e-8 are sent as 0, and those below
    6e-5 lose digits: take bf16 there."""
    powersgd_rank: int = execution(32)
    """Rank of 'powersgd': a gradient of n x m numbers is sent as (n + m) x rank."""
    embedding_gradients: Literal["rows", "dense"] | None = execution(None)
    """How workers of 'ddp' exchange the gradient of the word embeddings: the rows of tokens that the batch
    holds, or all rows; rows when not given. Both give the same gradient."""
    workers: int = execution(1)
    """Ray Train workers; each takes its share of every batch."""
    min_workers: int | None = execution(None)
    """Fewest workers with which training goes on if the cluster shrinks; ``workers`` when not given."""
    max_failures: int = execution(3)
    """Failures of workers after which training ends if no new checkpoint has come in between; preempted nodes
    do not count."""
    threads: int = execution(0)
    """Torch threads of each worker; 0 shares the machine's cores among the workers."""
    use_gpu: bool = execution(False)
    """Give each worker one GPU."""
    mlflow: str | None = execution(None)
    """Tracking URI of MLflow, where the training curves go, too; needs the extra 'mlflow'. Files for
    TensorBoard (extra 'tensorboard') are always written."""

    def __post_init__(self) -> None:
        positive(self, "temperature", "epochs", "learning_rate", "max_grad_norm")
        share(self, "distillation_weight", "warmup_ratio", "head_dropout")
        at_least(self, 0, "weight_decay", "seed", "threads", "max_failures", "relation_layer")
        at_least(self, 1, "batch_size", "gradient_accumulation_steps", "workers", "min_workers")
        at_least(self, 1, "powersgd_rank", "checkpoint_steps", "log_steps", "keep_best", "relation_heads")
        if self.attention_dropout is not None:
            share(self, "attention_dropout")
        self._check_objectives()
        self._check_workers()
        if self.dev is None and (self.publish == "best" or self.baseline is not None):
            needs = "publish 'best'" if self.publish == "best" else "baseline"
            raise InputError(f"{needs} needs questions to measure on; give --dev")

    @property
    def weights(self) -> dict[Objective, float]:
        """Weight by objective, in the order given."""
        assert self.objective_weights is not None
        return dict(zip(self.objective, self.objective_weights, strict=True))

    def _check_objectives(self) -> None:
        given: object = self.objective
        if isinstance(given, str):  # a string is a sequence of letters too
            raise InputError(f"objective is {given!r}; it must be a tuple of objectives: ({given!r},)")
        names = get_args(Objective)
        if not self.objective or len(set(self.objective)) < len(self.objective):
            raise InputError(f"objective is {self.objective}; name one or several, each once: {names}")
        if unknown := [name for name in self.objective if name not in names]:
            raise InputError(f"objective {unknown[0]!r} is unknown; it must be one of {', '.join(names)}")
        default(self, "objective_weights", (1.0,) * len(self.objective))
        for name in ("objective_weights", "teacher_weights"):
            for weight in getattr(self, name) or ():
                if not (math.isfinite(weight) and weight > 0):
                    raise InputError(f"{name} holds {weight}; each must be above 0")
        assert self.objective_weights is not None
        if len(self.objective_weights) != len(self.objective):
            raise InputError(
                f"{len(self.objective_weights)} objective_weights are given for {len(self.objective)} "
                f"objectives ({', '.join(self.objective)}); give one each"
            )
        if self.teacher is None and (layers := [n for n in self.objective if n in LAYER_OBJECTIVES]):
            raise InputError(f"objective '{layers[0]}' needs the teacher's layers; give --teacher")

    def _check_workers(self) -> None:
        fewest = self.workers if self.min_workers is None else self.min_workers
        if fewest > self.workers:
            raise InputError(f"min_workers {fewest} is above workers {self.workers}; give at most as many")
        if fewest < self.workers and self.strategy != "ddp":
            raise InputError(
                f"min_workers {fewest} with strategy '{self.strategy}': DeepSpeed's state is bound to its "
                "number of workers; leave min_workers out, or use strategy 'ddp'"
            )
        compression = None if self.gradient_compression == "none" else self.gradient_compression
        of_ddp = {"gradient_compression": compression, "embedding_gradients": self.embedding_gradients}
        for name, value in of_ddp.items():
            if value is not None and self.strategy != "ddp":
                raise InputError(
                    f"{name} '{value}' with strategy '{self.strategy}': DeepSpeed exchanges gradients by "
                    "itself; leave it out, or use strategy 'ddp'"
                )
        steps = self.gradient_accumulation_steps
        parts = self.workers * steps
        if self.batch_size % parts:
            raise InputError(
                f"batch_size {self.batch_size} does not divide by {self.workers} workers x "
                f"{steps} accumulation steps = {parts}; choose a multiple of {parts}"
            )
