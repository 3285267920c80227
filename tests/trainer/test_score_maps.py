"""Fitted maps of scores: hand-worked cases, an oracle, and that they ascend."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from trainer.score_maps import (
    MAX_KNOTS,
    METHODS,
    MIN_SLOPE,
    fit_isotonic,
    fit_temperature,
    isotonic_regression,
)

SHARES = st.floats(0, 1).map(lambda value: round(value, 3))


def regress(values, weights=None):
    values = np.array(values, float)
    return isotonic_regression(values, np.ones(len(values)) if weights is None else weights)


def test_worked_cases():
    assert regress([1, 2, 3]).tolist() == [1, 2, 3]
    # 3 and 2 are pooled to 2.5; then 2 is below, and all three become 7 / 3.
    assert regress([1, 3, 2, 2, 5]).tolist() == pytest.approx([1, 7 / 3, 7 / 3, 7 / 3, 5])
    assert regress([4, 2, 0]).tolist() == pytest.approx([2, 2, 2])
    # (3 · 1 + 0 · 2) / 3
    assert regress([3, 0, 1], np.array([1, 2, 1])).tolist() == pytest.approx([1, 1, 1])
    assert regress([3, 0, 2], np.array([1, 2, 1])).tolist() == pytest.approx([1, 1, 2])


@hypothesis.settings(max_examples=60)
@hypothesis.given(st.lists(st.tuples(SHARES, st.integers(1, 9)), min_size=1, max_size=12))
def test_regression_is_the_minimax_of_means(pairs):
    """Fitted i = max over j <= i of min over k >= i of the mean of j … k (Robertson 1988)."""
    values, weights = np.array(pairs, float).T

    def mean(first, last):
        part = slice(first, last + 1)
        return np.average(values[part], weights=weights[part])

    count = len(values)
    expected = [
        max(min(mean(j, k) for k in range(i, count)) for j in range(i + 1)) for i in range(count)
    ]
    np.testing.assert_allclose(isotonic_regression(values, weights), expected, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(pairs=st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=80))
def test_maps_ascend_from_0_with_few_knots(method, pairs):
    fitted = METHODS[method](*np.array(pairs, float).T)
    assert len(fitted.scores) == len(fitted.ious) <= MAX_KNOTS
    assert fitted.scores[0] == fitted.ious[0] == 0 and fitted.scores[-1] == 1 >= fitted.ious[-1]
    widths, heights = np.diff(fitted.scores), np.diff(fitted.ious)
    assert (widths > 5e-4).all() and (heights >= 0.999 * MIN_SLOPE * widths).all()


def test_a_few_levels_become_knots():
    scores = np.repeat([0.2, 0.5, 0.8], 40)
    ious = np.tile([0.0, 1.0], 60) * np.repeat([0.2, 0.8, 1.0], 40)  # means 0.1, 0.4, 0.5
    fitted = fit_isotonic(scores, ious)
    np.testing.assert_allclose(fitted.scores, [0, 0.2, 0.5, 0.8, 1])
    ascent = MIN_SLOPE * fitted.scores
    np.testing.assert_allclose(
        fitted.ious, (1 - MIN_SLOPE) * np.array([0, 0.1, 0.4, 0.5, 0.5]) + ascent
    )


def test_the_true_relation_is_found():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, 20000)
    fitted = fit_isotonic(scores, rng.uniform(0, 1, 20000) < scores**2)
    places = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(fitted(places), places**2, atol=0.04)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found(temperature):
    def relation(score):
        odds = (score / (1 - score)) ** (1 / temperature)
        return odds / (1 + odds)

    rng = np.random.default_rng(0)
    scores = rng.uniform(0.01, 0.99, 20000)
    fitted = fit_temperature(scores, rng.uniform(0, 1, 20000) < relation(scores))
    places = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(fitted(places), relation(places), atol=0.02)
