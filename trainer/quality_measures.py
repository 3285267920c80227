"""What can be said of the scored detections of one category: AP, LRP, calibration, agreement.

docs/METRICS.md defines the measures. A number that cannot be measured is -1.

Axes: n detections that count, best first; T IoU thresholds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

UNMEASURED = -1.0
# The IoU from which on LRP and agreement take a detection for true.
TRUE_FROM_IOU = 0.5
NUM_BINS = 25
_RECALLS = np.linspace(0.0, 1.0, 101)


class Lrp(NamedTuple):
    """An LRP error and what it is made of.

    Attributes:
        total: the LRP error, 0 (perfect) to 1.
        localisation: mean of 1 - IoU of true detections; -1 if there are none.
        false_positives: share of the detections that is false; -1 if there are none.
        false_negatives: share of the objects that is missed.
        threshold: the lowest score of the detections that were kept; -1 if there are none.
    """

    total: float
    localisation: float
    false_positives: float
    false_negatives: float
    threshold: float


class Agreement(NamedTuple):
    """How scores of true detections agree with their true IoUs.

    Attributes:
        count: number of true detections.
        correlation: Pearson's; None if scores or IoUs do not vary.
        mean_error: mean absolute difference; -1 without true detections.
        spread: standard deviation of the IoUs; -1 without true detections.
    """

    count: int
    correlation: float | None
    mean_error: float
    spread: float


def average_precision(hit: np.ndarray, false: np.ndarray, num_objects: int) -> float:
    """Computes COCO's AP, averaged over the thresholds.

    Args:
        hit, false: bool [n, T], whether each detection is right or wrong, the best score first;
            ignored ones are neither.
        num_objects: number of objects that count, above 0.
    """
    if not len(hit):
        return 0.0
    hits, falses = np.cumsum(hit, axis=0), np.cumsum(false, axis=0)
    precision = hits / (hits + falses + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    # COCO samples precision where a recall is first reached, at 101 recalls.
    reached = np.searchsorted(_RECALLS, hits / num_objects, side="right")
    samples = np.diff(reached, axis=0, prepend=0)
    return float((samples * precision).sum(axis=0).mean() / len(_RECALLS))


def lrp_errors(
    scores: np.ndarray, hit: np.ndarray, iou: np.ndarray, num_objects: int
) -> tuple[Lrp, Lrp]:
    """Computes the LRP error of all detections, and the optimal LRP error.

    The optimal one is the lowest that a score threshold can reach. Detections with the same score
    are kept together.

    Args:
        scores: float64 [n], descending.
        hit: bool [n], whether a detection is true; the others are false.
        iou: float64 [n], of the true detections, at least `TRUE_FROM_IOU`.
        num_objects: number of objects that count, above 0.
    """
    nothing = Lrp(1.0, UNMEASURED, UNMEASURED, 1.0, UNMEASURED)
    if not len(scores):
        return nothing, nothing
    kept = np.arange(1, len(scores) + 1)
    true = np.cumsum(hit)
    lost = np.cumsum(np.where(hit, 1 - iou, 0.0))
    total = (lost / (1 - TRUE_FROM_IOU) + kept - true + num_objects - true) / (
        kept + num_objects - true
    )

    def keep(last: int) -> Lrp:
        return Lrp(
            total=float(total[last]),
            localisation=float(lost[last] / true[last]) if true[last] else UNMEASURED,
            false_positives=float(1 - true[last] / kept[last]),
            false_negatives=float(1 - true[last] / num_objects),
            threshold=float(scores[last]),
        )

    lasts = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    best = int(lasts[np.argmin(total[lasts])])
    return keep(len(scores) - 1), keep(best) if true[best] else nothing


def calibration_errors(scores: np.ndarray, iou: np.ndarray) -> tuple[float, float]:
    """Computes LaECE₀ and LaACE₀ of one category; -1 without detections.

    Args:
        scores: float64 [n], 0 to 1; others are counted in the first or last bin.
        iou: float64 [n], with the matched object; 0 for false detections.
    """
    if not len(scores):
        return UNMEASURED, UNMEASURED
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)[1:-1]
    bins = np.searchsorted(edges, scores, side="left")
    excess = np.bincount(bins, weights=scores - iou)
    return float(np.abs(excess).sum() / len(scores)), float(np.abs(scores - iou).mean())


def agreement(scores: np.ndarray, iou: np.ndarray) -> Agreement:
    """Compares the scores of true detections with their IoUs, both float64 [n]."""
    if not len(scores):
        return Agreement(0, None, UNMEASURED, UNMEASURED)
    varies = len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(iou) > 0
    correlation = float(np.corrcoef(scores, iou)[0, 1]) if varies else None
    error = float(np.abs(scores - iou).mean())
    return Agreement(len(scores), correlation, error, float(iou.std()))


def mean_of_measured(values: list[float]) -> float:
    """Averages the values that are not -1; -1 if there are none."""
    measured = [value for value in values if value != UNMEASURED]
    return float(np.mean(measured)) if measured else UNMEASURED
