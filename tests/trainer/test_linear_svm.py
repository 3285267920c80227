"""R-CNN's linear SVMs and ridge regression, against the conditions of their minima."""

import numpy as np
import pytest

from trainer.linear_svm import HardNegatives, fit_ridge, fit_svm


def clouds(rng, dimensions=5, spread=1.0, counts=(30, 90)):
    centre = np.zeros(dimensions)
    centre[0] = 1.5
    return [
        rng.normal(sign * centre, spread, (count, dimensions)).astype(np.float32)
        for sign, count in zip((1, -1), counts, strict=True)
    ]


def objective(w, b, positives, negatives, cost, weight, bias_feature):
    losses = weight * np.maximum(0, 1 - positives @ w - b).sum()
    losses += np.maximum(0, 1 + negatives @ w + b).sum()
    return 0.5 * (w @ w + (b / bias_feature) ** 2) + cost * losses


def test_two_points_by_hand():
    # The widest margin between (0, 0) and (2, 0): f(x) = x - 1.
    svm = fit_svm(np.array([[2.0, 0.0]]), np.array([[0.0, 0.0]]), 10.0, 1.0, 1.0)
    np.testing.assert_allclose(svm.weights, [1, 0], atol=0.02)
    assert svm.bias == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("cost", "weight", "bias_feature"), [(1e-3, 2, 10), (0.1, 1, 1), (10, 3, 1)]
)
def test_no_step_in_any_direction_lowers_the_objective(seed, cost, weight, bias_feature):
    rng = np.random.default_rng(seed)
    positives, negatives = clouds(rng)
    settings = positives, negatives, cost, weight, bias_feature
    svm = fit_svm(*settings)
    w, b = svm.weights.astype(np.float64), float(svm.bias)
    least = objective(w, b, *settings)
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(30):
            step = rng.normal(size=len(w) + 1) * size
            assert objective(w + step[:-1], b + step[-1], *settings) > least * (1 - 2e-3)


def test_ridge_is_the_root_of_its_gradient():
    rng = np.random.default_rng(0)
    for count, dimensions in ((40, 6), (6, 40)):  # both of its ways to solve
        x, t = rng.normal(size=(count, dimensions)), rng.normal(size=(count, 4))
        fit = fit_ridge(x, t, penalty=3.0)
        error = fit(x) - t
        np.testing.assert_allclose(x.T @ error + 3.0 * fit.weights, 0, atol=1e-4)
        np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-4)


def test_ridge_of_one_feature_by_hand():
    # Centred x = ±1 and t = ±2: W = 4 / (2 + 2).
    fit = fit_ridge(np.array([[4.0], [6.0]]), np.array([[1.0], [5.0]]), penalty=2.0)
    np.testing.assert_allclose(fit.weights, [[1.0]], rtol=1e-6)
    np.testing.assert_allclose(fit.bias, [3.0 - 5.0], rtol=1e-6)


def test_mining_finds_the_svm_of_all_negatives():
    rng = np.random.default_rng(1)
    positives, negatives = clouds(rng, counts=(40, 3000))
    everything = fit_svm(positives, negatives)
    mined = HardNegatives(positives, refit_after=300)
    for portion in np.array_split(negatives, 60):
        mined.see(portion)
    svm = mined.fit()
    assert len(mined._cache) < len(negatives)
    np.testing.assert_allclose(svm.weights, everything.weights, atol=0.02)
    assert svm.bias == pytest.approx(float(everything.bias), abs=0.05)
