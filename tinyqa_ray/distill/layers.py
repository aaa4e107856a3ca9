"""Objectives that compare a student's layers with those of a teacher that runs beside it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tinyqa_ray.configs import DistillConfig
from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.activation_recorder import (
    QKV,
    ActivationRecorder,
    Activations,
    attention_probabilities,
    attention_scores,
)
from tinyqa_ray.distill.batches import Batch
from tinyqa_ray.distill.encoders import (
    attention_heads,
    encoder_layers,
    positions_in_scores,
    projection_names,
)
from tinyqa_ray.distill.losses import attention_loss, hidden_loss, prefers_gram, relation_loss, score_loss
from tinyqa_ray.distill.students import LayerPairs, Projections, layer_pairs
from tinyqa_ray.models import families

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Terms = dict[str, Tensor]
"""Loss terms by name; a step minimises their sum."""


class LayerObjective(nn.Module):
    """A loss between (student, teacher) pairs of layers and of hidden states."""

    layer_pairs: LayerPairs
    """Layers whose projections are compared, from 0."""
    hidden_pairs: LayerPairs = ()
    """Hidden states that are compared; 0 is the embeddings."""
    projections_read: tuple[str, ...]
    """Which of "query", "key", "value" are compared."""

    def forward(self, mine: Activations, its: Activations, batch: Batch) -> Terms:
        """Loss terms of what student and teacher computed over the same windows."""
        raise NotImplementedError


class Intermediate(LayerObjective):
    """MSE of attention and hidden states against the teacher's layers.

    For block size b = teacher layers / student layers: attention of student layer i is compared with
    teacher layer (i + 1) b - 1, hidden state i with i b (TinyBERT, arXiv 1909.10351, equations 7 to 9).
    """

    projections_read = ("query", "key")

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, config: DistillConfig) -> None:
        super().__init__()
        check_heads(student.config, teacher.config)
        self.layer_pairs, self.hidden_pairs = layer_pairs(
            len(encoder_layers(teacher)), len(encoder_layers(student))
        )
        self.projections = Projections(
            len(self.hidden_pairs), student.config.hidden_size, teacher.config.hidden_size
        )
        self.heads = attention_heads(student.config)
        self.maps = config.attention_maps

    def forward(self, mine: Activations, its: Activations, batch: Batch) -> Terms:
        """Terms "attention" and "hidden", each summed over its pairs."""
        attention = [self._attention(mine.layers[s], its.layers[t], batch) for s, t in self.layer_pairs]
        hidden = [
            hidden_loss(
                self.projections(i, mine.hidden_states[s]),
                its.hidden_states[t],
                batch.token_mask,
                batch.tokens,
            )
            for i, (s, t) in enumerate(self.hidden_pairs)
        ]
        return {"attention": torch.stack(attention).sum(), "hidden": torch.stack(hidden).sum()}

    def _attention(self, student: QKV, teacher: QKV, batch: Batch) -> Tensor:
        assert student.query is not None
        assert student.key is not None
        assert teacher.query is not None
        assert teacher.key is not None
        mine, its = (student.query, student.key), (teacher.query, teacher.key)
        tokens, width = student.query.shape[1:]
        if self.maps == "scores" and prefers_gram(tokens, width // self.heads):
            return score_loss(mine, its, batch.token_mask, self.heads, batch.pairs)
        maps = [attention_scores(*pair, self.heads) for pair in (mine, its)]
        if self.maps == "probabilities":
            maps = [attention_probabilities(scores, batch.token_mask) for scores in maps]
        return attention_loss(maps[0], maps[1], batch.token_mask, batch.pairs)


class Relations(LayerObjective):
    """KL between the query, key and value relations of the student's last layer and a teacher layer.

    MiniLMv2, arXiv 2012.15828: widths and head counts may differ, so a large teacher can serve.
    """

    projections_read = ("query", "key", "value")

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel, config: DistillConfig) -> None:
        super().__init__()
        self.heads = check_relations(
            student.config, teacher.config, config.relation_heads, config.relation_layer
        )
        last = len(encoder_layers(teacher)) - 1
        layer = last if config.relation_layer is None else config.relation_layer
        self.layer_pairs = ((len(encoder_layers(student)) - 1, layer),)

    def forward(self, mine: Activations, its: Activations, batch: Batch) -> Terms:
        """Terms "query", "key" and "value"."""
        ((s, t),) = self.layer_pairs
        student, teacher = mine.layers[s], its.layers[t]
        return {
            name: relation_loss(
                getattr(student, name), getattr(teacher, name), batch.token_mask, self.heads, batch.tokens
            )
            for name in self.projections_read
        }


class TeacherComparison(nn.Module):
    """A teacher that runs over the student's windows in training, and the objectives that compare both."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        objectives: Mapping[str, LayerObjective],
    ) -> None:
        super().__init__()
        # In a list, outside the module tree: a teacher is neither trained, saved, nor wrapped.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.objectives = nn.ModuleDict(objectives)
        what = {name for each in objectives.values() for name in each.projections_read}

        def recorder(model: PreTrainedModel, side: int) -> ActivationRecorder:
            layers = [pair[side] for each in objectives.values() for pair in each.layer_pairs]
            hidden = [pair[side] for each in objectives.values() for pair in each.hidden_pairs]
            return ActivationRecorder(model, layers, what, hidden)

        self._recorders = recorder(student, 0), recorder(teacher, 1)

    @property
    def teacher(self) -> PreTrainedModel:
        """The frozen model that runs beside the student."""
        return self._teacher[0]

    def forward(self, batch: Batch) -> dict[str, Terms]:
        """Run the teacher; return, by objective, the loss terms for the student's latest forward."""
        teacher = self._teacher[0].to(batch.input_ids.device)
        with torch.no_grad():
            teacher(**inputs(batch, families.uses_types(teacher)))
        mine, its = (each.take() for each in self._recorders)
        return {name: objective(mine, its, batch) for name, objective in self.objectives.items()}


def freeze_after_relations(student: PreTrainedModel) -> None:
    """Freeze what follows the last layer's projections: relations alone give it no gradient.

    Otherwise data parallelism would wait for those gradients.
    """
    *earlier, last = encoder_layers(student)
    if any(layer is last for layer in earlier):  # ALBERT's, whose layers share weights
        return
    # ModernBERT normalises the input of its projections.
    used = projection_names(student) | {"attn_norm"}
    for name, parameter in last.named_parameters():
        if name.rpartition(".")[0] not in used:
            parameter.requires_grad_(False)


def check_heads(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """Refuse a pair whose attention scores cannot be compared.

    Raises:
        InputError: their numbers of heads differ.
    """
    heads = attention_heads(student), attention_heads(teacher)
    if heads[0] != heads[1]:
        raise InputError(
            f"the student has {heads[0]} attention heads, the teacher {heads[1]}; objective 'intermediate' "
            "compares them one by one, so give a teacher with as many, or teach 'relations'"
        )
    for config in {each.model_type: each for each in (student, teacher)}.values():
        if (positions := positions_in_scores(config)) is not None:
            _log.warning(
                "%s adds %s to its attention scores; objective 'intermediate' compares what queries and keys "
                "give without them",
                config.model_type,
                positions,
            )


def check_relations(
    student: PretrainedConfig, teacher: PretrainedConfig, heads: int | None, layer: int | None
) -> int:
    """Return the number of relation heads: ``heads``, or the student's attention heads if it is None.

    Raises:
        InputError: the number does not divide both widths, or the teacher has no such ``layer``.
    """
    count = attention_heads(student) if heads is None else heads
    widths = int(student.hidden_size), int(teacher.hidden_size)
    if widths[0] % count or widths[1] % count:
        allowed = [n for n in range(1, 65) if not widths[0] % n and not widths[1] % n]
        raise InputError(
            f"{count} relation heads do not divide both widths, {widths[0]} of the student and {widths[1]} "
            f"of the teacher; give --relation-heads one of {', '.join(map(str, allowed))}"
        )
    depth = int(teacher.num_hidden_layers)
    if layer is not None and not 0 <= layer < depth:
        raise InputError(f"relation_layer is {layer}; the teacher has layers 0 to {depth - 1}")
    return count


def inputs(batch: Batch, types: bool) -> dict[str, Tensor]:
    """Arguments of a model's forward, from a batch; with ``types``, token types too."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.token_mask.long()}
    return given | {"token_type_ids": batch.token_type_ids} if types else given
