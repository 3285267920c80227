"""What a score tells about which outlines to look at: risk and coverage.

Source: El-Yaniv and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010.
Detections are accepted from the best score down, and what is accepted should fit well.

Axes: n detections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WANTED = (0.7, 0.75, 0.8, 0.85, 0.9)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def measure_coverage(scores: np.ndarray, ious: np.ndarray) -> dict[str, Any]:
    """Measures how well the detections fit that a score keeps.

    Args:
        scores: float64 [n].
        ious: float64 [n], with the matched object; 0 for false detections.

    Returns:
        "count": n. "mean_iou": of all; None for none. "curve": by each of `SHARES`, the mean IoU
        of that share of the detections, those with the best scores. "thresholds": by each of
        `WANTED`, {"score": the lowest one that detections may have for their mean IoU to reach
        it, "share": of the detections that have it}; None where none is high enough.
    """
    count = len(scores)
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    # Neither a share nor a threshold separates equal scores, so they get their mean.
    _, inverse, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    ious = (np.bincount(inverse, ious[order], len(counts)) / counts)[inverse]
    means = np.cumsum(ious) / np.arange(1, count + 1)
    lasts = np.cumsum(counts) - 1
    return {
        "count": count,
        "mean_iou": float(means[-1]) if count else None,
        "curve": {
            f"{share:g}": float(means[max(round(share * count), 1) - 1])
            for share in SHARES
            if count
        },
        "thresholds": {
            f"{wanted:g}": _threshold(wanted, scores, means, lasts) for wanted in WANTED
        },
    }


def _threshold(
    wanted: float, scores: np.ndarray, means: np.ndarray, lasts: np.ndarray
) -> dict[str, float | None]:
    """Keeps as many detections as possible, up to one of `lasts`."""
    enough = lasts[means[lasts] >= wanted] if len(lasts) else lasts
    if not len(enough):
        return {"score": None, "share": None}
    last = int(enough[-1])
    return {"score": float(scores[last]), "share": (last + 1) / len(scores)}
