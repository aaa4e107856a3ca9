from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.calibration import best_temperature, calibration_error, cross_entropy, reliability


def drawn(temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and outcomes that are right as often as ``sigmoid(margin / temperature)`` says."""
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 6, 20_000)
    return margins, (rng.random(20_000) < 1 / (1 + np.exp(-margins / temperature))).astype(float)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature_that_made_the_data_is_found(temperature: float) -> None:
    assert best_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.05)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=30),
    st.floats(0.02, 50),
)
def test_no_other_temperature_is_better(rows: list[tuple[float, float]], other: float) -> None:
    margins, right = (np.array(column) for column in zip(*rows, strict=True))
    best = best_temperature(margins, right)
    assert cross_entropy(margins, right, best) <= cross_entropy(margins, right, other) + 1e-9


def test_fitted_scores_are_the_share_of_right_answers() -> None:
    margins, right = drawn(3.0)
    plain, fitted = (1 / (1 + np.exp(-margins / t)) for t in (1.0, best_temperature(margins, right)))
    assert calibration_error(fitted, right) < 0.02 < 0.1 < calibration_error(plain, right)


def test_reliability_is_the_mean_of_each_bin_of_scores() -> None:
    scores, right = np.array([0.0, 0.05, 0.95, 1.0, 0.1]), np.array([0.0, 1.0, 1.0, 0.5, 0.25])
    found = reliability(scores, right)
    assert found.counts.tolist() == [2, 1, *[0] * 7, 2]
    np.testing.assert_allclose(found.scores[[0, 1, 9]], [0.025, 0.1, 0.975])
    np.testing.assert_allclose(found.right[[0, 1, 9]], [0.5, 0.25, 0.75])
    assert np.isnan(found.right[2:9]).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_error_is_the_distance_of_each_bin_weighted_by_what_it_holds(rows: list[tuple[float, float]]) -> None:
    scores, right = (np.array(column) for column in zip(*rows, strict=True))
    number = np.minimum((scores * 10).astype(int), 9)
    apart = sum(abs((scores - right)[number == each].sum()) for each in range(10))
    assert calibration_error(scores, right) == pytest.approx(apart / len(rows), abs=1e-12)


def test_certain_and_right_has_no_error() -> None:
    assert calibration_error(np.array([0.0, 1.0, 1.0]), np.array([0.0, 1.0, 1.0])) == 0.0
    assert calibration_error(np.array([1.0, 1.0]), np.array([0.0, 0.0])) == 1.0
