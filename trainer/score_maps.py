"""Fits increasing maps from a score to the IoU that one can expect of a detection with it.

Two methods: isotonic regression by pooling adjacent violators (Zadrozny and Elkan, KDD 2002), and
temperature scaling with one parameter (Guo et al., ICML 2017).

A fit is turned into few knots. It keeps a small slope everywhere, because detections with equal
scores have no order, and AP would change.

Axes: N detections, P knots.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from model.score_calibration import ScoreMap

MAX_KNOTS = 30
# For each inner knot of isotonic regression, so that a few detections do not bend the map.
DETECTIONS_PER_KNOT = 20
MIN_SLOPE = 0.01
_MIN_GAP = 1e-3
_TEMPERATURES = (0.05, 20.0)
# Beyond this logit, the sigmoid is nearly straight.
_STEEP = 4.5
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def fit_isotonic(scores: np.ndarray, ious: np.ndarray) -> ScoreMap:
    """Fits the increasing map with the least squared error.

    Each run of equal fitted values becomes a knot at its mean score. Neighbours are then joined,
    those first that it costs least, until there are at most `MAX_KNOTS`.

    Args:
        scores: float64 [N], 0 to 1, N above 0.
        ious: float64 [N], true IoUs, 0 for false detections.
    """
    unique, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    fitted = isotonic_regression(np.bincount(inverse, ious) / counts, counts)
    starts = np.flatnonzero(np.diff(fitted, prepend=-1.0))
    weights = np.add.reduceat(counts.astype(np.float64), starts)
    means = np.add.reduceat(unique * counts, starts) / weights
    limit = min(MAX_KNOTS - 2, max(1, len(scores) // DETECTIONS_PER_KNOT))
    return _through(*_join_neighbours(means, fitted[starts], weights, limit))


def isotonic_regression(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Finds the ascending sequence with the least weighted squared distance: float64 [N].

    Args:
        values: [N].
        weights: [N], above 0.
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        count = 1
        while blocks and blocks[-1][0] >= value:
            other, other_weight, other_count = blocks.pop()
            total = weight + other_weight
            value = (value * weight + other * other_weight) / total
            weight, count = total, count + other_count
        blocks.append((value, weight, count))
    return np.repeat([block[0] for block in blocks], [block[2] for block in blocks])


def fit_temperature(scores: np.ndarray, ious: np.ndarray) -> ScoreMap:
    """Fits T in sigmoid(logit(score) / T) by the cross-entropy with the IoUs.

    Args:
        scores, ious: as for `fit_isotonic`.
    """
    logits = _logit(np.clip(scores, 1e-6, 1 - 1e-6))

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - ious * scaled))

    temperature = np.exp(_minimise(cross_entropy, *np.log(_TEMPERATURES)))
    reach = min(_STEEP * temperature, _logit(np.array(1 - _MIN_GAP)))
    knots = np.linspace(-reach, reach, MAX_KNOTS - 2)
    return _through(_sigmoid(knots), _sigmoid(knots / temperature), last=1.0)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], ScoreMap]] = {
    "isotonic": fit_isotonic,
    "temperature": fit_temperature,
}


def _join_neighbours(
    scores: np.ndarray, ious: np.ndarray, weights: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joins neighbours to weighted means until there are few enough, none too near to another."""
    while len(scores) > 1:
        first, second = weights[:-1], weights[1:]
        costs = first * second / (first + second) * np.diff(ious) ** 2
        too_near = np.diff(scores) < _MIN_GAP
        if len(scores) <= limit and not too_near.any():
            break
        at = int(np.argmin(np.where(too_near, -1.0, costs)))
        pair = weights[at : at + 2]
        for values in (scores, ious):
            values[at] = np.average(values[at : at + 2], weights=pair)
        weights[at] = pair.sum()
        scores, ious, weights = (np.delete(v, at + 1) for v in (scores, ious, weights))
    return scores, ious


def _through(scores: np.ndarray, ious: np.ndarray, last: float | None = None) -> ScoreMap:
    """Returns the map through knots and the origin, with a slope of at least `MIN_SLOPE`.

    Args:
        scores, ious: ascending knots.
        last: value at a score of 1; by default that of the last knot.
    """
    inner = (scores >= _MIN_GAP) & (scores <= 1 - _MIN_GAP)
    knots = np.concatenate([[0.0], scores[inner], [1.0]])
    values = np.concatenate([[0.0], ious[inner], [ious[-1] if last is None else last]])
    return ScoreMap(knots, (1 - MIN_SLOPE) * values + MIN_SLOPE * knots)


def _minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Finds the minimum of a function with a single one by golden sections."""
    for _ in range(60):
        step = _GOLDEN * (high - low)
        if function(high - step) < function(low + step):
            high = low + step
        else:
            low = high - step
    return (low + high) / 2


def _logit(shares: np.ndarray) -> np.ndarray:
    return np.log(shares) - np.log1p(-shares)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))
