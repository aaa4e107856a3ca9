from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tinyqa_ray.core.errors import InputError
from tinyqa_ray.distill.activation_recorder import attention_scores
from tinyqa_ray.distill.losses import (
    PredictionKind,
    attention_loss,
    hidden_loss,
    label_loss,
    prediction_loss,
    prefers_gram,
    relation_loss,
    score_loss,
)

Array = NDArray[np.float64]

ROWS, TOKENS, WIDTH, HEADS = 4, 6, 12, 3
LENGTHS = (6, 1, 4, 3)
seeds = st.integers(0, 2**32 - 1)


class Batch:
    """A random batch: ragged rows, student and teacher tensors, labels of which one is missing."""

    def __init__(self, seed: int, lengths: tuple[int, ...] = LENGTHS) -> None:
        rng = np.random.default_rng(seed)

        def tensor(*shape: int) -> Tensor:
            return torch.tensor(rng.normal(scale=2.0, size=shape), dtype=torch.float32)

        rows = len(lengths)
        self.lengths = lengths
        self.mask = torch.arange(TOKENS)[None, :] < torch.tensor(lengths)[:, None]
        self.logits = [tensor(rows, TOKENS) for _ in range(4)]
        self.hidden = [tensor(rows, TOKENS, WIDTH) for _ in range(2)]
        self.maps = [tensor(rows, HEADS, TOKENS, TOKENS) for _ in range(2)]
        self.vectors = [tensor(rows, TOKENS, WIDTH), tensor(rows, TOKENS, 2 * WIDTH)]
        self.positions = [torch.tensor(rng.integers(0, lengths)) for _ in range(2)]
        self.positions[0][0] = -1
        self.keys = [tensor(rows, TOKENS, WIDTH), tensor(rows, TOKENS, 2 * WIDTH)]

    def rows(self, chosen: slice) -> Batch:
        part = Batch.__new__(Batch)
        part.lengths, part.mask = self.lengths[chosen], self.mask[chosen]
        for name in ("logits", "hidden", "maps", "vectors", "positions", "keys"):
            setattr(part, name, [tensor[chosen] for tensor in getattr(self, name)])
        return part

    def with_padding(self, value: float) -> Batch:
        changed = self.rows(slice(None))
        pairs = self.mask[:, None, :, None] & self.mask[:, None, None, :]
        changed.logits = [t.masked_fill(~self.mask, value) for t in self.logits]
        changed.hidden = [t.masked_fill(~self.mask[:, :, None], value) for t in self.hidden]
        changed.vectors = [t.masked_fill(~self.mask[:, :, None], value) for t in self.vectors]
        changed.keys = [t.masked_fill(~self.mask[:, :, None], value) for t in self.keys]
        changed.maps = [t.masked_fill(~pairs, value) for t in self.maps]
        return changed


SAMPLES, REAL, PAIRS = len(LENGTHS), sum(LENGTHS), sum(n * n for n in LENGTHS)


def label(batch: Batch) -> Tensor:
    (start_logits, end_logits, _, _), (starts, ends) = batch.logits, batch.positions
    return label_loss(start_logits, end_logits, starts, ends, batch.mask, SAMPLES)


def prediction(batch: Batch, kind: PredictionKind, temperature: float = 1.5) -> Tensor:
    student_start, student_end, teacher_start, teacher_end = batch.logits
    return prediction_loss(
        student_start, student_end, teacher_start, teacher_end, batch.mask, temperature, SAMPLES, kind
    )


def relation(batch: Batch, heads: int = HEADS) -> Tensor:
    student, teacher = batch.vectors
    return relation_loss(student, teacher, batch.mask, heads, REAL)


def score(batch: Batch) -> Tensor:
    """Of the vectors as queries."""
    student, teacher = ((query, key) for query, key in zip(batch.vectors, batch.keys, strict=True))
    return score_loss(student, teacher, batch.mask, HEADS, PAIRS)


LOSSES: dict[str, Callable[[Batch], Tensor]] = {
    "label": label,
    "kl": lambda batch: prediction(batch, "kl"),
    "mse": lambda batch: prediction(batch, "mse"),
    "hidden": lambda batch: hidden_loss(batch.hidden[0], batch.hidden[1], batch.mask, REAL),
    "attention": lambda batch: attention_loss(batch.maps[0], batch.maps[1], batch.mask, PAIRS),
    "relation": relation,
    "score": score,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def softmax(values: Array) -> Array:
    powers: Array = np.exp(values - values.max(axis=-1, keepdims=True))
    shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def divergence(teacher: Array, student: Array) -> float:
    return float((teacher * (np.log(teacher) - np.log(student))).sum())


def products(queries: Tensor, keys: Tensor, head: int) -> Array:
    """Scaled dot products of one head's queries and keys, (n, D) each."""
    width = queries.shape[-1] // HEADS
    query, key = (t[:, head * width : (head + 1) * width].double().numpy() for t in (queries, keys))
    scores: Array = query @ key.T / np.sqrt(width)
    return scores


def expected(name: str, batch: Batch) -> float:
    """The formulas again, row by row over real tokens only, in float64."""
    total = 0.0
    for row, n in enumerate(batch.lengths):
        logits = [t[row, :n].double().numpy() for t in batch.logits]
        if name == "label":
            start, end = (int(p[row]) for p in batch.positions)
            if start >= 0 and end >= 0:
                total -= np.log(softmax(logits[0])[start] * softmax(logits[1])[end]) / 2 / SAMPLES
        elif name == "kl":
            soft = [softmax(z / 1.5) for z in logits]
            total += 1.5**2 * (divergence(soft[2], soft[0]) + divergence(soft[3], soft[1])) / SAMPLES
        elif name == "mse":
            gaps = [(logits[i] - logits[i + 2]) / 1.5 for i in range(2)]
            total += 1.5**2 * sum(float((gap**2).mean()) for gap in gaps) / SAMPLES
        elif name == "hidden":
            student, teacher = (t[row, :n].double().numpy() for t in batch.hidden)
            total += ((student - teacher) ** 2).sum() / (REAL * WIDTH)
        elif name == "attention":
            student, teacher = (t[row, :, :n, :n].double().numpy() for t in batch.maps)
            total += ((student - teacher) ** 2).sum() / (PAIRS * HEADS)
        elif name == "score":
            for head in range(HEADS):
                student, teacher = (
                    products(query[row, :n], key[row, :n], head)
                    for query, key in zip(batch.vectors, batch.keys, strict=True)
                )
                total += ((student - teacher) ** 2).sum() / (PAIRS * HEADS)
        else:
            for head in range(HEADS):
                student, teacher = (
                    softmax(products(vectors[row, :n], vectors[row, :n], head)) for vectors in batch.vectors
                )
                # Far-off relations underflow in the naive logarithm; their share is 0.
                ratio = np.log(np.maximum(teacher, 1e-300)) - np.log(np.maximum(student, 1e-300))
                total += (teacher * ratio).sum() / (HEADS * REAL)
    return float(total)


@every_loss
@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_loss_equals_its_formula(name: str, seed: int) -> None:
    batch = Batch(seed)
    assert float(LOSSES[name](batch)) == pytest.approx(expected(name, batch), rel=1e-4, abs=1e-6)


@every_loss
@given(seed=seeds, value=st.sampled_from([0.0, -7.5, 1e30, float("inf"), float("nan")]))
@settings(deadline=None, max_examples=15)
def test_padding_changes_neither_loss_nor_gradient(name: str, seed: int, value: float) -> None:
    def run(batch: Batch) -> tuple[Tensor, list[Tensor]]:
        leaves = [*batch.logits[:2], batch.hidden[0], batch.maps[0], batch.vectors[0], batch.keys[0]]
        for leaf in leaves:
            leaf.requires_grad_()
        loss = LOSSES[name](batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]

    loss, gradients = run(Batch(seed))
    changed_loss, changed_gradients = run(Batch(seed).with_padding(value))
    torch.testing.assert_close(changed_loss, loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(changed_gradients, gradients, rtol=1e-5, atol=1e-7)
    assert gradients


@every_loss
@given(seed=seeds, cut=st.integers(1, ROWS - 1))
@settings(deadline=None, max_examples=15)
def test_micro_batches_add_up_to_the_global_batch(name: str, seed: int, cut: int) -> None:
    batch = Batch(seed)
    parts = LOSSES[name](batch.rows(slice(None, cut))) + LOSSES[name](batch.rows(slice(cut, None)))
    assert float(parts) == pytest.approx(float(LOSSES[name](batch)), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "label"])
def test_a_student_equal_to_its_teacher_has_no_loss(name: str) -> None:
    batch = Batch(0)
    batch.logits[2:] = batch.logits[:2]
    for pair in (batch.hidden, batch.maps, batch.vectors, batch.keys):
        pair[1] = pair[0]
    size = float(LOSSES[name](Batch(0)))
    assert float(LOSSES[name](batch)) == pytest.approx(0.0, abs=1e-6 * max(1.0, size))


@every_loss
def test_losses_are_float32_under_autocast(name: str) -> None:
    batch = Batch(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](batch), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_row_without_a_label_gets_no_gradient(missing: int) -> None:
    batch = Batch(1)
    for positions in batch.positions:
        positions[:] = 0
    batch.positions[missing][2] = -1
    for logits in batch.logits:
        logits.requires_grad_()
    LOSSES["label"](batch).backward()  # type: ignore[no-untyped-call]
    for logits in batch.logits[:2]:
        assert logits.grad is not None
        assert not logits.grad[2].any()
        assert logits.grad[0].any()


def test_divergence_runs_from_the_teacher_to_the_student() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = prediction_loss(unsure, unsure, sure, unsure, mask, 1.0, 1)
    teacher = softmax(np.array([4.0, 0.0]))
    assert float(loss) == pytest.approx(divergence(teacher, np.array([0.5, 0.5])), rel=1e-5)


def test_different_head_counts_are_refused_for_attention_maps() -> None:
    batch = Batch(0)
    with pytest.raises(InputError, match="the student has 1 attention heads and the teacher 3"):
        attention_loss(batch.maps[0][:, :1], batch.maps[1], batch.mask, PAIRS)


@given(seed=seeds)
@settings(deadline=None, max_examples=25)
def test_scores_need_no_maps(seed: int) -> None:
    """The loss of scores equals that of the maps which it does not make, in value and in gradient."""
    batch = Batch(seed)
    rng = np.random.default_rng([seed, 1])
    widths = (WIDTH, WIDTH, 2 * WIDTH, 2 * WIDTH)
    vectors = [
        torch.tensor(rng.normal(size=(ROWS, TOKENS, width)), dtype=torch.float32, requires_grad=True)
        for width in widths
    ]
    maps = [attention_scores(vectors[i], vectors[i + 1], HEADS) for i in (0, 2)]
    slow = attention_loss(maps[0], maps[1], batch.mask, PAIRS)
    fast = score_loss((vectors[0], vectors[1]), (vectors[2], vectors[3]), batch.mask, HEADS, PAIRS)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-6)
    for mine, its in zip(torch.autograd.grad(fast, vectors), torch.autograd.grad(slow, vectors), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-3, atol=1e-5)


def test_scores_of_a_perfect_student_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    vectors = [torch.tensor(rng.normal(scale=5, size=(2, 128, 96)), dtype=torch.float32) for _ in range(2)]
    mask = torch.arange(128)[None, :] < torch.tensor([[128], [77]])
    pair = (vectors[0], vectors[1])
    size = float(score_loss(pair, (vectors[0], 0 * vectors[1]), mask, 3, 128**2 + 77**2))
    assert abs(float(score_loss(pair, pair, mask, 3, 128**2 + 77**2))) < 1e-6 * size


@pytest.mark.parametrize("tokens_more", [-2, -1, 0, 1])
@pytest.mark.parametrize("width", [4, 32])
def test_scores_cost_the_same_on_both_sides_of_the_switch(width: int, tokens_more: int) -> None:
    """From three widths of a head on, the maps are no longer made."""
    tokens = 3 * width + tokens_more
    assert prefers_gram(tokens, width) == (tokens_more >= 0)
    generator = torch.Generator().manual_seed(tokens)
    query, key, its_query, its_key = (
        torch.randn(2, tokens, HEADS * width, generator=generator) for _ in range(4)
    )
    lengths = torch.tensor([[tokens], [tokens // 2]])
    mask = torch.arange(tokens)[None, :] < lengths
    pairs = int((lengths**2).sum())
    maps = [attention_scores(*pair, HEADS) for pair in ((query, key), (its_query, its_key))]
    slow = attention_loss(maps[0], maps[1], mask, pairs)
    fast = score_loss((query, key), (its_query, its_key), mask, HEADS, pairs)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=0)


@given(tokens=st.integers(1, 600), width=st.integers(1, 128))
@settings(deadline=None)
def test_maps_are_left_out_once_and_for_all_longer_windows(tokens: int, width: int) -> None:
    assert prefers_gram(tokens + 1, width) >= prefers_gram(tokens, width) >= prefers_gram(tokens, width + 1)


@pytest.mark.parametrize("heads", [0, 5])
def test_relation_heads_that_do_not_divide_the_width_are_refused(heads: int) -> None:
    with pytest.raises(InputError, match=f"{heads} relation heads do not divide a width of 12"):
        relation(Batch(0), heads)


def test_wrong_temperature_and_kind_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="temperature is 0"):
        prediction(Batch(0), "kl", temperature=0.0)
    with pytest.raises(InputError, match="'l1'; it must be 'kl' or 'mse'"):
        prediction(Batch(0), "l1")  # type: ignore[arg-type]
