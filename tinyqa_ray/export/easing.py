"""Matrix products that lose less in int8: inputs evened out, weights rounded together; numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Int8 = NDArray[np.int8]

LEVELS = {7: 64, 8: 127}
"""Largest integer of weights, by their bits; the smallest is its opposite. See ``quantise.quantised``."""
_QUANTILES = (0.9, 0.95, 0.98, 0.99)
_POWERS = (0.5, 0.6, 0.7)
_GAIN = 0.95
"""Factors that leave more than this share of the error are not worth another multiplication."""
_DAMPING = 0.1
"""Of the mean of the squares: with more, rounding relies less on which inputs go together."""
_MASSIVE, _OTHERS = 3.0, 0.98
"""How many times larger than this quantile of all channels a massive one is."""
_BLOCK = 128


def factors(samples: Sequence[Float], weights: Sequence[Float], levels: int) -> Float | None:
    """Factors s that even out the inputs of products, as ``x @ w == (x / s) @ (s[:, None] * w)``.

    A few inputs of a layer are ten times as large as the others, and int8 has one step for all of them.
    Factors make these smaller and their weights larger (SmoothQuant, arXiv 2211.10438). Candidates are those
    of its equation 4, for several powers, and others that only bring the largest inputs down to a quantile of
    all. The ones with the smallest error of the products on the samples are taken.

    Args:
        samples: inputs as the products get them, an array ``(tokens, I)`` for each batch, whose range is one.
        weights: the matrices ``(I, O)`` of all products of these inputs.
        levels: largest integer that a weight may take.

    Returns:
        ``(I,)``; None where no candidate is worth it.
    """
    together = np.concatenate(samples)
    wanted = [together @ w for w in weights]

    def error(s: Float) -> float:
        stepped = np.concatenate([_stepped(x / s) for x in samples])
        return sum(
            float(np.square(stepped @ w - product).sum()) for w, product in zip(eased, wanted, strict=True)
        )

    best, factors_of_best, plain = np.inf, None, np.inf
    for s in (np.ones(len(weights[0]), np.float32), *_candidates(samples, weights)):
        eased = [_dequantised(w * s[:, None], levels) for w in weights]
        made = error(s)
        if plain == np.inf:
            plain = made
        elif made < min(best, _GAIN * plain):
            best, factors_of_best = made, s
    return factors_of_best


def massive(samples: Sequence[Float]) -> NDArray[np.int64]:
    """Channels of an input that are far larger than all others, ``(K,)``, in order; mostly none.

    Some models mark their first token by a few channels that are many times larger than anything else
    ("massive activations", arXiv 2402.17762). In int8 such a channel takes the range from all others, or with
    factors the weights' range from those of the same output. Computed apart in float (LLM.int8(), arXiv
    2208.07339), they cost little: they are few.
    """
    largest = np.max([np.abs(x).max(axis=0) for x in samples], axis=0)
    found: NDArray[np.int64] = np.flatnonzero(
        largest > _MASSIVE * np.quantile(largest, _OTHERS, method="lower")
    )
    return found


def without(
    channels: NDArray[np.int64], samples: Sequence[Float], weights: Sequence[Float]
) -> tuple[list[Float], list[Float]]:
    """Inputs and weights with 0 for some channels of the input."""
    kept = np.ones(len(weights[0]), np.float32)
    kept[channels] = 0.0
    return [x * kept for x in samples], [weight * kept[:, None] for weight in weights]


def _candidates(samples: Sequence[Float], weights: Sequence[Float]) -> Iterator[Float]:
    largest = np.max([np.abs(x).max(axis=0) for x in samples], axis=0)
    of_weights = np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    for quantile in _QUANTILES:
        yield np.maximum(1.0, largest / max(float(np.quantile(largest, quantile)), 1e-6)).astype(np.float32)
    for power in _POWERS:
        s = np.maximum(largest, 1e-4) ** power / np.maximum(of_weights, 1e-4) ** (1.0 - power)
        yield (s / np.exp(np.log(s).mean())).astype(np.float32)


def _stepped(x: Float) -> Float:
    """Inputs as int8 has them: 255 equal steps between the smallest and the largest, 0 being one of them."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = (high - low) / 255.0 or 1.0
    made: Float = np.rint(x / step) * np.float32(step)
    return made


def steps(weights: Float, levels: int) -> Float:
    """The step of each output's weights, ``(O,)``."""
    found: Float = np.abs(weights).max(axis=0) / np.float32(levels)
    return np.where(found > 0, found, np.float32(1.0))


def _dequantised(weights: Float, levels: int) -> Float:
    step = steps(weights, levels)
    made: Float = np.rint(weights / step) * step
    return made


def rounded(weights: Float, step: Float, squares: Float, levels: int) -> Int8:
    """Weights as integers: what rounding one input's weight adds to the products, the next ones take back.

    GPTQ (arXiv 2210.17323), inputs in the order of their squares.

    Args:
        weights: ``(I, O)``.
        step: ``(O,)``.
        squares: ``x.T @ x`` of many inputs x, ``(I, I)``.
        levels: largest integer that a weight may take.

    Returns:
        ``(I, O)``, from -levels to levels.
    """
    damped = squares.astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * max(float(np.diag(damped).mean()), 1e-12)
    order = np.argsort(-np.diag(damped), kind="stable")
    # Row i of the upper Cholesky factor of the inverse: how the error of input i spreads over those after it.
    upper = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T
    left = weights[order].astype(np.float64)
    made = np.empty(left.shape, np.int8)
    for first in range(0, len(left), _BLOCK):
        block = slice(first, min(first + _BLOCK, len(left)))
        errors = np.empty((block.stop - first, left.shape[1]))
        for row in range(block.start, block.stop):
            whole = np.clip(np.rint(left[row] / step), -levels, levels)
            made[row] = whole
            errors[row - first] = (left[row] - whole * step) / upper[row, row]
            left[row + 1 : block.stop] -= np.outer(upper[row, row + 1 : block.stop], errors[row - first])
        left[block.stop :] -= upper[block, block.stop :].T @ errors
    back = np.empty_like(made)
    back[order] = made
    return back
