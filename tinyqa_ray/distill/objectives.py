"""What a student is taught: gold labels, the teacher's layers or its predictions, or a weighted sum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyqa_ray.configs import LAYER_OBJECTIVES, DistillConfig, Objective
from tinyqa_ray.distill.batches import Batch
from tinyqa_ray.distill.encoders import parts_after_layers
from tinyqa_ray.distill.layers import (
    Intermediate,
    LayerObjective,
    Relations,
    TeacherComparison,
    Terms,
    freeze_after_relations,
    inputs,
)
from tinyqa_ray.distill.losses import label_loss, prediction_loss
from tinyqa_ray.models import families

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DistillationModule(nn.Module):
    """A student with its objectives: a batch in, loss terms out. This is what data parallelism wraps.

    Args:
        student: with a question-answering head.
        config: the objectives and their settings.
        teacher: the teacher beside the student, for objectives that compare layers; its weights, which are
            never trained, are held in the precision of the matrix products.
        autocast: precision of the matrix products; float32 turns autocast off.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        config: DistillConfig,
        teacher: PreTrainedModel | None,
        autocast: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.autocast = autocast
        self.uses_types = families.uses_types(student)
        kinds: dict[str, type[Any]] = {"intermediate": Intermediate, "relations": Relations}
        compared: dict[str, LayerObjective] = {
            name: kinds[name](student, teacher, config)
            for name in config.objective
            if name in LAYER_OBJECTIVES
        }
        # A checkpoint names parameters by these attributes: `student`, `beside`.
        self.beside: TeacherComparison | None = None
        if compared:
            assert teacher is not None
            self.beside = TeacherComparison(student, _held_in(teacher, autocast), compared)
        if len(compared) == len(config.objective):
            # Only layers are taught: what follows them gets no gradient, and data parallelism would wait.
            for part in families.head_modules(student) + parts_after_layers(student):
                part.requires_grad_(False)
            if config.objective == ("relations",):
                freeze_after_relations(student)
        if config.freeze_embeddings:
            student.get_input_embeddings().requires_grad_(False)
        if config.head_dropout:
            families.head_modules(student)[0].register_forward_pre_hook(self._drop)

    def forward(self, batch: Batch) -> Terms:
        """Weighted loss terms of a micro-batch, as parts of the global batch's (see ``losses``)."""
        device = batch.input_ids.device.type
        with torch.autocast(device, self.autocast, enabled=self.autocast != torch.float32):
            output = self.student(**inputs(batch, self.uses_types))
            compared = {} if self.beside is None else self.beside(batch)
        terms: Terms = {}
        for objective, weight in self.config.weights.items():
            found = compared[objective] if objective in compared else self._head(objective, output, batch)
            for name, term in found.items():
                # Two objectives may have a term of the same name, "label".
                terms[name] = terms.get(name, 0.0) + weight * term
        return terms

    def _head(self, objective: Objective, output: Any, batch: Batch) -> Terms:
        """Terms of the span logits."""
        start, end, mask = output.start_logits, output.end_logits, batch.token_mask
        label = label_loss(start, end, batch.start_positions, batch.end_positions, mask, batch.samples)
        if objective == "labels":
            return {"label": label}
        share = self.config.distillation_weight
        return {"prediction": share * self._prediction(start, end, batch), "label": (1 - share) * label}

    def _prediction(self, start: Tensor, end: Tensor, batch: Batch) -> Tensor:
        """Distance from the teachers' logits, averaged over the teachers."""
        assert batch.start_logits is not None
        assert batch.end_logits is not None
        teachers = len(batch.start_logits)
        weights = self.config.teacher_weights or (1.0,) * teachers
        assert len(weights) == teachers, (weights, teachers)
        distances = [
            weight
            * prediction_loss(
                start,
                end,
                its_start,
                its_end,
                batch.token_mask,
                self.config.temperature,
                batch.samples,
                self.config.prediction_loss,
            )
            for weight, its_start, its_end in zip(weights, batch.start_logits, batch.end_logits, strict=True)
        ]
        return torch.stack(distances).sum() / sum(weights)

    def _drop(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (functional.dropout(given[0], self.config.head_dropout, module.training),)


def _held_in(teacher: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The teacher with weights of ``dtype``, to which autocast would else convert them in every forward.

    Buffers stay as they are: the frequencies of rotary positions need float32.
    """
    for parameter in teacher.parameters():
        parameter.data = parameter.data.to(dtype)
    return teacher
