"""Students: which layers they learn from, how one is cut from a teacher, and what must fit between them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill import encoders

LayerPairs = tuple[tuple[int, int], ...]
"""(student, teacher) indices."""


def layer_block(teacher_layers: int, student_layers: int) -> int:
    """Return b, the number of teacher layers that one student layer stands for.

    Raises:
        InputError: the student's depth does not divide the teacher's.
    """
    assert teacher_layers > 0, teacher_layers
    if student_layers > 0 and teacher_layers % student_layers == 0:
        return teacher_layers // student_layers
    allowed = [depth for depth in range(1, teacher_layers + 1) if teacher_layers % depth == 0]
    below = [depth for depth in allowed if depth < student_layers][-1:]
    above = [depth for depth in allowed if depth > student_layers][:1]
    raise InputError(
        f"a student of {student_layers} layers does not divide a teacher of {teacher_layers}; "
        f"the nearest depths that do: {', '.join(map(str, below + above))}"
    )


def layer_pairs(teacher_layers: int, student_layers: int) -> tuple[LayerPairs, LayerPairs]:
    """Pair layers and hidden states evenly (TinyBERT's uniform mapping, arXiv 1909.10351).

    Returns:
        the pairs of layers whose attention is compared, student i with teacher (i + 1) · b - 1, from 0; and
        the pairs of hidden states, i with i · b, where hidden state 0 is the embeddings.

    Raises:
        InputError: the student's depth does not divide the teacher's.
    """
    block = layer_block(teacher_layers, student_layers)
    attention = tuple(enumerate(evenly_spaced_layers(teacher_layers, student_layers)))
    hidden = tuple((index, index * block) for index in range(student_layers + 1))
    return attention, hidden


def evenly_spaced_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Return the last teacher layer of each block, from 0: layers 1, 3 and 5 of 6 for a student of 3.

    Raises:
        InputError: the student's depth does not divide the teacher's.
    """
    block = layer_block(teacher_layers, student_layers)
    return tuple((index + 1) * block - 1 for index in range(student_layers))


def student_from_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Make a student of the teacher's class out of some of its layers, in increasing order.

    Embeddings and head are copied as well, and no tensor is shared. The student has the teacher's dtype,
    device, and train or eval mode; it is trainable even if the teacher is frozen.

    Args:
        teacher: an encoder of a supported family, with its head.
        layers: teacher layers to keep, from 0, each once, in any order.

    Raises:
        InputError: no layer, a repeated one or one out of range; layers that no student of the family can
            have; or the family is not supported.
    """
    encoder = encoders.find(teacher)
    _check_layers(layers, len(encoder.layers))
    config, kept = student_config(teacher.config, layers)
    student = type(teacher)(config).to(device=teacher.device, dtype=teacher.dtype)

    prefix = next(name for name, module in teacher.named_modules() if module is encoder.weights) + "."
    place = {str(source): position for position, source in enumerate(kept)}
    state = {}
    for name, tensor in teacher.state_dict().items():
        if not name.startswith(prefix):
            state[name] = tensor
            continue
        source, rest = name.removeprefix(prefix).split(".", 1)
        if source in place:
            state[f"{prefix}{place[source]}.{rest}"] = tensor
    student.load_state_dict(state)
    return student.train(teacher.training)


def student_config(
    teacher: PretrainedConfig, layers: Sequence[int]
) -> tuple[PretrainedConfig, tuple[int, ...]]:
    """The configuration of a student of some of a teacher's layers, and the weights that it keeps.

    ALBERT's layers share weights: its student repeats the weights of the groups that the layers are of.

    Args:
        teacher: configuration of the teacher.
        layers: teacher layers to keep, from 0, each once, in any order.

    Returns:
        the configuration; and which of the teacher's weights the student's layers run, in order: the layers
        chosen or, in ALBERT, the groups that they are of.

    Raises:
        InputError: a student of the family cannot run these layers; the message says why.
    """
    chosen = sorted(layers)
    places = encoders.weight_places(teacher)
    of_chosen = [places[layer] for layer in chosen]
    kept = tuple(dict.fromkeys(of_chosen))
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = len(chosen)
    if hasattr(config, "num_hidden_groups"):
        config.num_hidden_groups = len(kept)
        runs = [kept[place] for place in encoders.weight_places(config)]
        if runs != of_chosen:
            raise InputError(
                f"layers {_listed(chosen)} are of groups {_listed(of_chosen)}, whose layers share weights; "
                f"a student of {len(chosen)} layers would run groups {_listed(runs)}; choose layers of one "
                "group, or as many of each"
            )
    kinds = getattr(config, "layer_types", None)  # ModernBERT's local and global attention alternate
    if kinds is not None:
        config.layer_types = [kinds[layer] for layer in chosen]
        if 0 not in chosen:
            raise InputError(
                "layer 0, the only one that takes embeddings, is not chosen for the student; add it"
            )
    return config, kept


class Projections(nn.Module):
    """Learned linear maps, one for each hidden pair, from the student's width to the teacher's.

    They have no bias, and no parameters at all where the widths are equal. The optimiser must train them.

    Args:
        pairs: number of hidden pairs.
        student_width: features of the student's hidden states.
        teacher_width: features of the teacher's.
    """

    def __init__(self, pairs: int, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Identity()
            if student_width == teacher_width
            else nn.Linear(student_width, teacher_width, bias=False)
            for _ in range(pairs)
        )

    def forward(self, index: int, hidden: Tensor) -> Tensor:
        """Project ``hidden`` [B, T, student_width] to [B, T, teacher_width] by the map of pair ``index``."""
        projected = self.maps[index](hidden)
        assert isinstance(projected, Tensor)
        return projected


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _check_layers(layers: Sequence[int], teacher_layers: int) -> None:
    allowed = f"give each of layers 0 to {teacher_layers - 1} at most once"
    if not layers:
        raise InputError(f"no layer is chosen for the student; {allowed}")
    for position, layer in enumerate(layers):
        if not 0 <= layer < teacher_layers:
            raise InputError(f"layer {layer} is chosen for the student; {allowed}")
        if layer in layers[:position]:
            raise InputError(f"layer {layer} is chosen twice for the student; {allowed}")
