"""R-CNN's linear SVMs and box regressions (Girshick et al., CVPR 2014, section 2.3, appendix C).

Axes: n examples, d features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Those of the authors' code.
SVM_COST = 1e-3
POSITIVE_WEIGHT = 2.0
BIAS_FEATURE = 10.0
RIDGE_PENALTY = 1000.0

_MAX_PASSES = 1000
# Relative difference between the objectives of the problem and its dual, which is 0 at the minimum.
_TOLERANCE = 1e-3


class Linear(NamedTuple):
    """A linear function x W + b."""

    weights: np.ndarray  # float32 [d] or [d, k]
    bias: np.ndarray  # float32 [] or [k]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Applies it to float [n, d]."""
        return features @ self.weights + self.bias

    def scaled(self, scale: float) -> Linear:
        """Returns the function whose value at x is that of this one at scale x."""
        return Linear(np.float32(scale) * self.weights, self.bias)


def fit_svm(
    positives: np.ndarray,
    negatives: np.ndarray,
    cost: float = SVM_COST,
    positive_weight: float = POSITIVE_WEIGHT,
    bias_feature: float = BIAS_FEATURE,
) -> Linear:
    """Minimises ½ |w|² + cost Σ weight max(0, 1 - y f(x)), f(x) = x w + b, y = ±1.

    The bias is the weight of a constant feature and thus part of |w|. The dual problem is solved by
    coordinate descent (Hsieh et al., ICML 2008) until the objective is proved to be within 0.1 % of
    its minimum.

    Args:
        positives, negatives: float [n, d], at least one of each.
        cost: weight of the losses.
        positive_weight: further weight of those of positives.
        bias_feature: value of the constant feature.
    """
    x = np.concatenate([positives, negatives]).astype(np.float64)
    x = np.concatenate([x, np.full([len(x), 1], bias_feature)], axis=1)
    signs = np.repeat([1.0, -1.0], [len(positives), len(negatives)])
    limits = cost * np.repeat([positive_weight, 1.0], [len(positives), len(negatives)])
    signed = x * signs[:, None]
    weights = _descend(signed, limits)
    return Linear(weights[:-1].astype(np.float32), np.float32(weights[-1] * bias_feature))


def _descend(signed: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Maximises Σ a - ½ |Σ a x|² over 0 <= a <= limits, and returns the sum: float64 [d].

    Args:
        signed: float64 [n, d], each example x times its y.
        limits: float64 [n].
    """
    rng = np.random.default_rng(0)
    squares = np.maximum(np.square(signed).sum(axis=1), 1e-12)
    duals, weights = np.zeros(len(signed)), np.zeros(signed.shape[1])
    for _ in range(_MAX_PASSES):
        for index in rng.permutation(len(signed)):
            step = (1.0 - signed[index] @ weights) / squares[index]
            step = min(max(step, -duals[index]), limits[index] - duals[index])
            if step:
                duals[index] += step
                weights += step * signed[index]
        square = 0.5 * weights @ weights
        primal = square + limits @ np.maximum(1.0 - signed @ weights, 0.0)
        if primal - (duals.sum() - square) <= _TOLERANCE * primal:
            break
    return weights


def fit_ridge(features: np.ndarray, targets: np.ndarray, penalty: float = RIDGE_PENALTY) -> Linear:
    """Minimises |x W + b - t|² + penalty |W|²; the bias is not penalised.

    Args:
        features: float [n, d].
        targets: float [n, k].
        penalty: λ.
    """
    mean_x, mean_t = features.mean(axis=0), targets.mean(axis=0)
    x, t = (features - mean_x).astype(np.float64), (targets - mean_t).astype(np.float64)
    if len(x) < x.shape[1]:  # the smaller of two equal systems
        weights = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), t)
    else:
        weights = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ t)
    bias = mean_t - mean_x @ weights
    return Linear(weights.astype(np.float32), bias.astype(np.float32))


class HardNegatives:
    """A class's SVM and the negatives that it does not yet separate.

    Examples are seen in portions, such as an image's. Those that violate the margin join the cache,
    and the SVM is fitted again when the cache has grown enough; negatives far beyond the margin
    leave it (Felzenszwalb et al., PAMI 2010, section 4.4). R-CNN found one pass enough.

    Args:
        positives: float32 [n, d], all of them.
        refit_after: number of negatives that join before the next fit.
        hard_above: score above which a negative joins the cache.
        easy_below: score below which one leaves it.
    """

    def __init__(
        self,
        positives: np.ndarray,
        refit_after: int = 2000,
        hard_above: float = -1.0001,
        easy_below: float = -1.2,
    ):
        self._positives = positives
        self._refit_after, self._hard, self._easy = refit_after, hard_above, easy_below
        self._cache = np.zeros([0, positives.shape[1]], np.float32)
        self._joined = 0
        self.svm: Linear | None = None

    def see(self, negatives: np.ndarray) -> None:
        """Adds the hard ones of a portion, float32 [n, d], and fits again if there are enough."""
        if self.svm is not None:
            negatives = negatives[self.svm(negatives) > self._hard]
        self._cache = np.concatenate([self._cache, negatives])
        self._joined += len(negatives)
        if self._joined >= self._refit_after or (self.svm is None and self._joined):
            self.fit()

    def fit(self) -> Linear:
        """Fits the SVM to the positives and the cache, if it has grown; forgets easy negatives."""
        if self.svm is not None and not self._joined:
            return self.svm
        self.svm = fit_svm(self._positives, self._cache)
        self._cache = self._cache[self.svm(self._cache) >= self._easy]
        self._joined = 0
        return self.svm
