"""Products that lose less in int8: what they compute stays, what rounding costs falls."""

from __future__ import annotations

import numpy as np
import pytest

from tinyqa_ray.export import easing
from tinyqa_ray.export.easing import Float

LEVELS = easing.LEVELS[7]


@pytest.fixture
def inputs() -> Float:
    """Inputs that hang together, one of them much larger than the others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 24)) @ rng.normal(size=(24, 48))
    x[:, 7] *= 30.0
    return x.astype(np.float32)


@pytest.fixture
def weights() -> Float:
    return np.random.default_rng(1).normal(size=(48, 16)).astype(np.float32)


def int8(x: Float, weights: Float) -> Float:
    """The product as int8 computes it."""
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    of_weights = easing.steps(weights, LEVELS)
    made: Float = (np.rint(x / step) * step) @ (np.rint(weights / of_weights) * of_weights)
    return made


def test_factors_leave_the_product_and_halve_what_int8_loses(inputs: Float, weights: Float) -> None:
    s = easing.factors([inputs[:300], inputs[300:]], [weights], LEVELS)
    assert s is not None
    np.testing.assert_allclose((inputs / s) @ (s[:, None] * weights), inputs @ weights, rtol=1e-3, atol=1e-2)
    before, after = (
        np.square(made - inputs @ weights).mean()
        for made in (int8(inputs, weights), int8(inputs / s, s[:, None] * weights))
    )
    assert after < 0.5 * before


def test_products_of_one_input_get_the_same_factors(inputs: Float, weights: Float) -> None:
    s = easing.factors([inputs], [weights, weights[:, :4] * 3.0], LEVELS)
    assert s is not None
    assert s.shape == (48,)
    assert s[7] == s.max()


def test_even_inputs_get_no_factors(weights: Float) -> None:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(500, 48)).astype(np.float32)
    assert easing.factors([signs], [np.ones_like(weights)], LEVELS) is None


@pytest.mark.parametrize("levels", easing.LEVELS.values())
def test_rounding_together_loses_less_than_rounding_each(inputs: Float, weights: Float, levels: int) -> None:
    step = easing.steps(weights, levels)
    made = easing.rounded(weights, step, inputs.T @ inputs, levels)
    assert made.dtype == np.int8
    assert levels / 2 < np.abs(made.astype(int)).max() <= levels

    def lost(whole: Float) -> float:
        return float(np.square(inputs @ (weights - whole * step)).mean())

    assert lost(made.astype(np.float32)) < 0.6 * lost(np.rint(weights / step))


def test_rounding_together_does_not_rely_on_how_the_inputs_of_the_calibration_go_together() -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(256, 64)).astype(np.float32)
    few = rng.normal(size=(2000, 24)) @ rng.normal(size=(24, 256)) / np.sqrt(24)
    seen = (few + 0.02 * rng.normal(size=few.shape)).astype(np.float32)
    others = rng.normal(size=seen.shape).astype(np.float32)
    step = easing.steps(weights, LEVELS)
    made = easing.rounded(weights, step, seen.T @ seen, LEVELS).astype(np.float32)

    def lost(whole: Float, inputs: Float) -> float:
        return float(np.square(inputs @ (weights - whole * step)).mean())

    each = np.rint(weights / step)
    assert lost(made, seen) < 0.1 * lost(each, seen)
    assert lost(made, others) < 1.45 * lost(each, others)


def test_channel_that_marks_a_token_is_massive_and_ordinary_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=(50, 96)).astype(np.float32) for _ in range(4)]
    assert not len(easing.massive(samples))
    for each in samples:
        each[0, 17] = 40.0
    np.testing.assert_array_equal(easing.massive(samples), [17])


def test_rest_without_massive_channels_and_these_alone_are_the_whole_product(
    inputs: Float, weights: Float
) -> None:
    channels = easing.massive([inputs])
    np.testing.assert_array_equal(channels, [7])
    (rest,), (others,) = easing.without(channels, [inputs], [weights])
    np.testing.assert_allclose(
        rest @ others + inputs[:, channels] @ weights[channels], inputs @ weights, rtol=1e-3, atol=1e-2
    )
    lost = [np.square(int8(x, w) - x @ w).mean() for x, w in ((inputs, weights), (rest, others))]
    assert lost[1] < 0.1 * lost[0]


def test_inputs_that_are_always_zero_are_rounded_all_the_same(weights: Float) -> None:
    made = easing.rounded(weights, easing.steps(weights, LEVELS), np.zeros((48, 48), np.float32), LEVELS)
    np.testing.assert_array_equal(made, np.rint(weights / easing.steps(weights, LEVELS)).astype(np.int8))


def test_weights_that_are_zero_have_a_step() -> None:
    np.testing.assert_array_equal(easing.steps(np.zeros((3, 2), np.float32), LEVELS), [1.0, 1.0])
