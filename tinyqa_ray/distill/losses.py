"""The losses of distillation, as pure functions of tensors.

Every loss is a sum over the rows it is given, divided by a count that belongs to the whole global batch.
The losses of micro-batches, and of workers, therefore add up exactly to the loss of the global batch.
Data-parallel training that averages gradients over n workers must multiply the loss by n to undo the average.

Shapes: B rows, T tokens, D features, H attention heads. ``token_mask`` [B, T] is True on real tokens; values
on padding, even an infinity or NaN, change neither a loss nor a gradient. All losses are computed in
float32, also under autocast.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from tinyqa_ray.core.errors import InputError

# Stands for minus infinity: softmax gives it exactly 0, and 0 times it is 0 and not NaN.
_LOWEST = torch.finfo(torch.float32).min

PredictionKind = Literal["kl", "mse"]


def label_loss(
    start_logits: Tensor,
    end_logits: Tensor,
    start_positions: Tensor,
    end_positions: Tensor,
    token_mask: Tensor,
    denominator: int,
) -> Tensor:
    """Cross-entropy of the labelled span: the mean of the start's and the end's.

    Args:
        start_logits: [B, T].
        end_logits: [B, T].
        start_positions: [B] integers, each on a real token; -1 where the row has no label: it adds 0.
        end_positions: [B], likewise.
        token_mask: [B, T] bool.
        denominator: samples in the global batch, those without a label included.

    Returns:
        a scalar, sum over rows of (CE_start + CE_end) / 2, divided by ``denominator``.
    """
    assert denominator > 0, denominator
    labelled = (start_positions >= 0) & (end_positions >= 0)
    rows = _cross_entropy(start_logits, start_positions, token_mask)
    rows = rows + _cross_entropy(end_logits, end_positions, token_mask)
    return rows.masked_fill(~labelled, 0.0).sum() / (2 * denominator)


def prediction_loss(
    student_start: Tensor,
    student_end: Tensor,
    teacher_start: Tensor,
    teacher_end: Tensor,
    token_mask: Tensor,
    temperature: float,
    denominator: int,
    kind: PredictionKind = "kl",
) -> Tensor:
    """Distance of the student's span logits from the teacher's (Hinton et al., arXiv 1503.02531; Haystack 1).

    With z the logits and t the temperature, the loss of a row is t² · (D_start + D_end), where D is
    KL(softmax(z_teacher / t) || softmax(z_student / t)) along the tokens, or, for "mse", the mean over tokens
    of ((z_student - z_teacher) / t)². For "mse", t cancels.

    Args:
        student_start: [B, T] logits.
        student_end: [B, T] logits.
        teacher_start: [B, T] logits.
        teacher_end: [B, T] logits.
        token_mask: [B, T] bool.
        temperature: t, above 0.
        denominator: samples in the global batch.
        kind: "kl" or "mse".

    Returns:
        a scalar, sum over rows divided by ``denominator``.

    Raises:
        InputError: the temperature is not above 0, or the kind is unknown.
    """
    assert denominator > 0, denominator
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be above 0")
    if kind not in ("kl", "mse"):
        raise InputError(f"the kind of prediction loss is {kind!r}; it must be 'kl' or 'mse'")
    distance = _kl_rows if kind == "kl" else _mse_rows
    rows = distance(student_start, teacher_start, token_mask, temperature)
    rows = rows + distance(student_end, teacher_end, token_mask, temperature)
    return temperature**2 * rows.sum() / denominator


def hidden_loss(student: Tensor, teacher: Tensor, token_mask: Tensor, denominator_tokens: int) -> Tensor:
    """Mean squared error of hidden states over real tokens and features (TinyBERT, arXiv 1909.10351, eq. 8).

    Args:
        student: [B, T, D], already projected to the teacher's width.
        teacher: [B, T, D].
        token_mask: [B, T] bool.
        denominator_tokens: real tokens in the global batch.

    Returns:
        a scalar, sum of squared differences divided by ``denominator_tokens`` · D.
    """
    assert denominator_tokens > 0, denominator_tokens
    assert student.shape == teacher.shape, (student.shape, teacher.shape)
    squares = _squared_difference(student, teacher, token_mask[:, :, None])
    return squares.sum() / (denominator_tokens * teacher.shape[-1])


def attention_loss(student: Tensor, teacher: Tensor, token_mask: Tensor, denominator_pairs: int) -> Tensor:
    """Mean squared error of attention maps over heads and real pairs (TinyBERT, arXiv 1909.10351, eq. 7).

    A pair is a query token and a key token of one row, both real, so a row of n real tokens has n² pairs.

    Args:
        student: [B, H, T, T] scores before softmax, or probabilities after it.
        teacher: [B, H, T, T], of the same sort.
        token_mask: [B, T] bool.
        denominator_pairs: pairs in the global batch: the sum of n² over its rows.

    Returns:
        a scalar, sum of squared differences divided by ``denominator_pairs`` · H.

    Raises:
        InputError: the head counts differ.
    """
    assert denominator_pairs > 0, denominator_pairs
    heads = teacher.shape[1]
    if student.shape[1] != heads:
        raise InputError(
            f"the student has {student.shape[1]} attention heads and the teacher {heads}; "
            "attention maps need equal counts, relations do not"
        )
    assert student.shape == teacher.shape, (student.shape, teacher.shape)
    pairs = token_mask[:, None, :, None] & token_mask[:, None, None, :]
    return _squared_difference(student, teacher, pairs).sum() / (denominator_pairs * heads)


def score_loss(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    token_mask: Tensor,
    heads: int,
    denominator_pairs: int,
) -> Tensor:
    """``attention_loss`` of the scores before softmax, Q Kᵀ / √d, without ever making the [T, T] maps.

    With A = [Qs/√ds, -Qt/√dt] and B = [Ks, Kt], the difference of the maps is A Bᵀ, and its squared norm is
    the sum over entries of (Aᵀ A) ∘ (Bᵀ B): two products of T × 2d instead of T × T maps, so that cost and
    memory grow with T and not with T². The sum is taken in float64, since near a perfect student it is a
    small difference of large numbers.

    Args:
        student: queries and keys of one layer, [B, T, Ds] each.
        teacher: the same of one teacher layer, [B, T, Dt] each.
        token_mask: [B, T] bool.
        heads: attention heads of both; divides Ds and Dt.
        denominator_pairs: pairs in the global batch: the sum of n² over its rows.

    Returns:
        a scalar, sum of squared differences divided by ``denominator_pairs`` · heads.
    """
    assert denominator_pairs > 0, denominator_pairs

    def split(vectors: Tensor, scaled: bool) -> Tensor:
        rows, tokens, width = vectors.shape
        assert width % heads == 0, (width, heads)
        each = width // heads
        # Zeros on padding make its scores zero in both models.
        real = vectors.float().masked_fill(~token_mask[:, :, None], 0.0)
        by_head = real.view(rows, tokens, heads, each).transpose(1, 2)
        return by_head / math.sqrt(each) if scaled else by_head

    with torch.autocast(device_type=token_mask.device.type, enabled=False):
        queries = torch.cat([split(student[0], True), -split(teacher[0], True)], dim=-1)
        keys = torch.cat([split(student[1], False), split(teacher[1], False)], dim=-1)
        products = (queries.transpose(2, 3) @ queries).double() * (keys.transpose(2, 3) @ keys).double()
        return (products.sum() / (denominator_pairs * heads)).float()


def prefers_gram(tokens: int, head_width: int) -> bool:
    """Whether ``score_loss`` is faster than ``attention_loss`` of maps, at a length and a width of heads.

    Its products cost 8 T d² for each head; those of the maps cost 4 T² d, and several passes over T² numbers.
    As ``benchmarks/score_loss.py`` measures, the two are equally fast at T = 2 d for heads of width d = 32,
    and at T = 4 d for d = 64.
    """
    return tokens >= 3 * head_width


def relation_loss(
    student: Tensor, teacher: Tensor, token_mask: Tensor, heads: int, denominator_tokens: int
) -> Tensor:
    """KL of self-attention relations (MiniLMv2, arXiv 2012.15828, eq. 4 to 7); one call each for Q, K and V.

    The vectors are cut into ``heads`` relation heads of width d; the relation of a head is softmax(A Aᵀ / √d)
    over the real tokens. The widths, and the models' own head counts, may differ.

    Args:
        student: [B, T, Ds], the queries, keys or values of one student layer.
        teacher: [B, T, Dt], the same of one teacher layer.
        token_mask: [B, T] bool.
        heads: relation heads; divides Ds and Dt.
        denominator_tokens: real tokens in the global batch.

    Returns:
        a scalar, KL(teacher || student) summed over real query tokens and averaged over heads, divided by
        ``denominator_tokens``.

    Raises:
        InputError: ``heads`` does not divide both widths.
    """
    assert denominator_tokens > 0, denominator_tokens
    student_log = _log_relations(student, token_mask, heads)
    teacher_log = _log_relations(teacher, token_mask, heads)
    divergence = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
    return divergence.masked_fill(~token_mask[:, None, :], 0.0).sum() / (heads * denominator_tokens)


def _log_relations(vectors: Tensor, token_mask: Tensor, heads: int) -> Tensor:
    """Log-softmax of scaled dot products [B, heads, T, T] of ``vectors`` [B, T, D] with themselves."""
    rows, tokens, width = vectors.shape
    if heads < 1 or width % heads:
        raise InputError(f"{heads} relation heads do not divide a width of {width}; give a divisor of it")
    # Autocast would compute the product in half precision, whatever the type of its inputs.
    with torch.autocast(device_type=vectors.device.type, enabled=False):
        vectors = vectors.float().masked_fill(~token_mask[:, :, None], 0.0)
        split = vectors.view(rows, tokens, heads, width // heads).transpose(1, 2)
        scores = split @ split.transpose(2, 3) / math.sqrt(width // heads)
    return functional.log_softmax(scores.masked_fill(~token_mask[:, None, None, :], _LOWEST), dim=-1)


def _log_probabilities(logits: Tensor, token_mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-softmax [B, T] of ``logits`` / ``temperature`` along the real tokens."""
    return functional.log_softmax((logits.float() / temperature).masked_fill(~token_mask, _LOWEST), dim=-1)


def _cross_entropy(logits: Tensor, positions: Tensor, token_mask: Tensor) -> Tensor:
    """Cross-entropy [B] of each row's position; a negative position gives an arbitrary finite value."""
    chosen = positions.clamp(min=0)[:, None]
    return -_log_probabilities(logits, token_mask).gather(1, chosen).squeeze(1)


def _kl_rows(student: Tensor, teacher: Tensor, token_mask: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) [B] of logits [B, T]."""
    student_log = _log_probabilities(student, token_mask, temperature)
    teacher_log = _log_probabilities(teacher, token_mask, temperature)
    return functional.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)


def _mse_rows(student: Tensor, teacher: Tensor, token_mask: Tensor, temperature: float) -> Tensor:
    """Mean squared difference [B] of logits [B, T] over the real tokens of each row."""
    squares = _squared_difference(student, teacher, token_mask) / temperature**2
    return squares.sum(-1) / token_mask.sum(-1).clamp(min=1)


def _squared_difference(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Squared difference in float32, 0 where ``mask``, which broadcasts to the shape, is False."""
    return (student.float() - teacher.float()).masked_fill(~mask, 0.0).square()
