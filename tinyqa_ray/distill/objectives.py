"""What a student is taught: gold labels, the teacher's layers, or the teacher's predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.distill.batches import Batch
from tinyqa_ray.distill.losses import (
    attention_loss,
    hidden_loss,
    label_loss,
    prediction_loss,
    relation_loss,
    score_loss,
)
from tinyqa_ray.distill.students import LayerPairs, Projections, layer_pairs
from tinyqa_ray.distill.taps import (
    QKV,
    Tap,
    Tapped,
    attention_heads,
    attention_probabilities,
    attention_scores,
    encoder_layers,
)
from tinyqa_ray.errors import InputError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Terms = dict[str, Tensor]
"""Loss terms by name; a step minimises their sum."""


class Trainee(nn.Module):
    """A student with its objective: a batch in, loss terms out. This is what data parallelism wraps."""

    def __init__(
        self, student: PreTrainedModel, config: DistillConfig, teacher: PreTrainedModel | None
    ) -> None:
        super().__init__()
        self.student = student
        self.config = config
        self.uses_types = getattr(student.config, "type_vocab_size", 0) > 1
        self.layers: Taught | None = None
        if config.objective in ("intermediate", "relations"):
            assert teacher is not None
            self.layers = (Intermediate if config.objective == "intermediate" else Relations)(
                student, teacher, config
            )
            # Layers alone are taught: the head gets no gradient, which data parallelism must know.
            student.qa_outputs.requires_grad_(False)
        if config.head_dropout:
            student.qa_outputs.register_forward_pre_hook(self._drop)

    def forward(self, batch: Batch) -> Terms:
        """Loss terms of a micro-batch, as parts of the global batch's (see ``losses``)."""
        output = self.student(**_inputs(batch, self.uses_types))
        if self.layers is not None:
            terms: Terms = self.layers(batch)
            return terms
        label = label_loss(
            output.start_logits,
            output.end_logits,
            batch.start_positions,
            batch.end_positions,
            batch.token_mask,
            batch.samples,
        )
        if self.config.objective == "labels":
            return {"label": label}
        assert batch.start_logits is not None
        assert batch.end_logits is not None
        taught = prediction_loss(
            output.start_logits,
            output.end_logits,
            batch.start_logits,
            batch.end_logits,
            batch.token_mask,
            self.config.temperature,
            batch.samples,
        )
        weight = self.config.distillation_weight
        return {"prediction": weight * taught, "label": (1 - weight) * label}

    def _drop(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (functional.dropout(inputs[0], self.config.head_dropout, module.training),)


class Taught(nn.Module):
    """A teacher run on line over the same windows, and taps on both models: what layer objectives share."""

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        super().__init__()
        # In a list, outside the module tree: a teacher is neither trained, saved, nor wrapped.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.depths = len(encoder_layers(teacher)), len(encoder_layers(student))

    def tap(
        self, student: PreTrainedModel, pairs: LayerPairs, what: tuple[str, ...], hidden: LayerPairs
    ) -> None:
        """Listen to the pairs' (student, teacher) layers and hidden states."""
        self._taps = (
            Tap(student, [s for s, _ in pairs], what, [s for s, _ in hidden]),
            Tap(self._teacher[0], [t for _, t in pairs], what, [t for _, t in hidden]),
        )

    def take(self, batch: Batch) -> tuple[Tapped, Tapped]:
        """Run the teacher; return what the student's latest forward and the teacher's computed."""
        teacher = self._teacher[0].to(batch.input_ids.device)
        with torch.no_grad():
            teacher(**_inputs(batch, getattr(teacher.config, "type_vocab_size", 0) > 1))
        return self._taps[0].take(), self._taps[1].take()


class Intermediate(Taught):
    """MSE of attention and hidden states against the teacher's layers.

    For block size b = teacher layers / student layers: attention of student layer i against teacher layer
    (i + 1) b - 1, hidden state i against i b (TinyBERT, arXiv 1909.10351, equations 7 to 9).
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, config: DistillConfig) -> None:
        super().__init__(student, teacher)
        check_heads(student.config, teacher.config)
        self.attention, self.hidden = layer_pairs(*self.depths)
        self.projections = Projections(
            len(self.hidden), student.config.hidden_size, teacher.config.hidden_size
        )
        self.heads = attention_heads(student.config)
        self.maps = config.attention_maps
        self.tap(student, self.attention, ("query", "key"), self.hidden)

    def forward(self, batch: Batch) -> Terms:
        """Terms of the student's latest forward."""
        mine, its = self.take(batch)
        attention = [self._attention(mine.layers[s], its.layers[t], batch) for s, t in self.attention]
        hidden = [
            hidden_loss(
                self.projections(i, mine.hidden_states[s]),
                its.hidden_states[t],
                batch.token_mask,
                batch.tokens,
            )
            for i, (s, t) in enumerate(self.hidden)
        ]
        return {"attention": torch.stack(attention).sum(), "hidden": torch.stack(hidden).sum()}

    def _attention(self, student: QKV, teacher: QKV, batch: Batch) -> Tensor:
        mine, its = (student.query, student.key), (teacher.query, teacher.key)
        if self.maps == "scores":
            return score_loss(mine, its, batch.token_mask, self.heads, batch.pairs)  # type: ignore[arg-type]
        maps = [
            attention_probabilities(attention_scores(*pair, self.heads), batch.token_mask)  # type: ignore[arg-type]
            for pair in (mine, its)
        ]
        return attention_loss(maps[0], maps[1], batch.token_mask, batch.pairs)


class Relations(Taught):
    """KL of query, key and value relations of the student's last layer and one of the teacher's.

    MiniLMv2, arXiv 2012.15828: widths and head counts may differ, so a large teacher can serve.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, config: DistillConfig) -> None:
        super().__init__(student, teacher)
        teacher_layers, student_layers = self.depths
        layer = teacher_layers - 1 if config.relation_layer is None else config.relation_layer
        self.pair = (student_layers - 1, layer)
        self.heads = config.relation_heads or attention_heads(student.config)
        self.tap(student, (self.pair,), ("query", "key", "value"), ())
        # What follows the last layer's projections gets no gradient, which data parallelism must know.
        projections = ("query", "key", "value", "q_lin", "k_lin", "v_lin")
        for name, parameter in encoder_layers(student)[-1].named_parameters():
            if name.split(".")[-2] not in projections:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Terms:
        """Terms of the student's latest forward."""
        mine, its = self.take(batch)
        student, teacher = mine.layers[self.pair[0]], its.layers[self.pair[1]]
        return {
            name: relation_loss(
                getattr(student, name), getattr(teacher, name), batch.token_mask, self.heads, batch.tokens
            )
            for name in ("query", "key", "value")
        }


def check_heads(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a pair whose attention scores cannot be compared.

    Raises:
        InputError: with both numbers of heads.
    """
    heads = attention_heads(student), attention_heads(teacher)
    if heads[0] != heads[1]:
        raise InputError(
            f"the student has {heads[0]} attention heads, the teacher {heads[1]}; objective 'intermediate' "
            "compares them one by one, so give a teacher with as many"
        )


def _inputs(batch: Batch, uses_types: bool) -> dict[str, Tensor]:
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.token_mask.long()}
    return inputs | {"token_type_ids": batch.token_type_ids} if uses_types else inputs
