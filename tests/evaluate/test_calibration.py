from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyqa_ray.evaluate.calibration import Scale, best_scale, calibration_error, reliability


def drawn(temperature: float, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Margins, and outcomes that are right as often as ``sigmoid((margin - shift) / temperature)`` says."""
    rng = np.random.default_rng(0)
    margins = rng.normal(shift / 2, 6, 20_000)
    chance = 1 / (1 + np.exp(-(margins - shift) / temperature))
    return margins, (rng.random(20_000) < chance).astype(float)


def cross_entropy(margins: np.ndarray, right: np.ndarray, scale: Scale) -> float:
    """Mean cross entropy, in nats, of the scores of ``margins`` against ``right``."""
    logits = (margins - scale.shift) / scale.temperature
    return float(np.mean(np.logaddexp(0.0, logits) - right * logits))


@pytest.mark.parametrize(("temperature", "shift"), [(0.3, 0.0), (1.0, -3.0), (4.0, 8.0)])
def test_scale_that_made_the_data_is_found(temperature: float, shift: float) -> None:
    found = best_scale(*drawn(temperature, shift))
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.shift == pytest.approx(shift, abs=0.15)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 1)), min_size=1, max_size=30),
    st.floats(0.02, 50),
    st.floats(-20, 20),
)
def test_no_other_scale_is_better(rows: list[tuple[float, float]], temperature: float, shift: float) -> None:
    margins, right = (np.array(column) for column in zip(*rows, strict=True))
    best = best_scale(margins, right)
    other = Scale(temperature=temperature, shift=shift)
    assert cross_entropy(margins, right, best) <= cross_entropy(margins, right, other) + 1e-3


def test_fitted_scores_are_the_share_of_right_answers() -> None:
    margins, right = drawn(3.0, shift=5.0)
    plain, fitted = Scale(temperature=1.0, shift=0.0), best_scale(margins, right)
    error = calibration_error(fitted.scores(margins), right)
    assert error < 0.02 < 0.1 < calibration_error(plain.scores(margins), right)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_scale_is_finite_where_nothing_or_all_is_right(right: float) -> None:
    margins = np.array([-3.0, 2.0, 2.0, 7.0])
    found = best_scale(margins, np.full(4, right))
    np.testing.assert_allclose(found.scores(margins), right, atol=0.01)
    assert np.isfinite([found.temperature, found.shift]).all()


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
