"""What AP is lost to: the error classes of TIDE (Bolya et al., ECCV 2020, sections 2.2 and 2.3).

docs/METRICS.md defines them. Every false detection has one class, as has every missed object.

Axes: N detections, M objects, K categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from trainer.matching import Overlaps, Pairs, match
from trainer.quality_measures import UNMEASURED, average_precision, mean_of_measured

FOREGROUND, BACKGROUND = 0.5, 0.1
FALSE_DETECTIONS = ("class", "localisation", "both", "duplicate", "background")
ERRORS = (*FALSE_DETECTIONS, "missed")


class _Detections(NamedTuple):
    """Detections that count at an IoU of 0.5: scores float64, categories int64, is_hit bool."""

    scores: np.ndarray
    categories: np.ndarray
    is_hit: np.ndarray

    def add(self, other: _Detections) -> _Detections:
        pairs = zip(self, other, strict=True)
        return _Detections(*(np.concatenate(pair) for pair in pairs))


class _Best(NamedTuple):
    """The object that each detection overlaps most: iou float64 [N], object int64 [N].

    Without an overlap they are 0 and -1.
    """

    iou: np.ndarray
    object: np.ndarray


class _Repairs(NamedTuple):
    """Detections that would find an object but for their class or place, the best of each object.

    detection, object: int64 [n].
    """

    detection: np.ndarray
    object: np.ndarray


def measure_errors(overlaps: Overlaps, scores: np.ndarray) -> dict:
    """Measures how much higher AP at an IoU of 0.5 would be without each class of error.

    Args:
        overlaps: of N detections and M objects.
        scores: float64 [N], that the detections are ranked by.

    Returns:
        AP50, the gain for each of `ERRORS`, at least 0, and their "counts"; AP50 and gains are -1
        if there are no objects.
    """
    matches = match(overlaps, scores, np.array([FOREGROUND]))
    is_hit, is_false = matches.hit[:, 0, 0], matches.false[:, 0, 0]
    num_objects = overlaps.count_objects()[:, 0]
    is_found = np.zeros(len(overlaps.is_crowd), bool)
    is_found[overlaps.object_of(matches.pair[is_hit, 0, 0])] = True
    same = _best(overlaps.pairs.take(~overlaps.is_crowd[overlaps.pairs.object]), len(scores))
    other = _best(overlaps.other_pairs, len(scores))
    error = _classify(same.iou, other.iou)
    repairs = _find_repairs(error, is_false, scores, same, other, is_found)
    is_missed = ~is_found & ~overlaps.is_crowd
    is_missed[repairs.object] = False

    def select(chosen: np.ndarray) -> _Detections:
        return _Detections(scores[chosen], overlaps.category[chosen], is_hit[chosen])

    base = _average_precision(select(is_hit | is_false), num_objects)
    gains = {}
    for number, name in enumerate(FALSE_DETECTIONS):
        chosen = error[repairs.detection] == number
        repaired = _Detections(
            scores[repairs.detection[chosen]],
            overlaps.object_category[repairs.object[chosen]],
            np.ones(np.count_nonzero(chosen), bool),
        )
        others = select(is_hit | (is_false & (error != number)))
        gains[name] = _average_precision(others.add(repaired), num_objects)
    missed = np.bincount(overlaps.object_category[is_missed], minlength=len(num_objects))
    gains["missed"] = _average_precision(select(is_hit | is_false), num_objects - missed)
    counts = {n: int(np.sum(error[is_false] == i)) for i, n in enumerate(FALSE_DETECTIONS)}
    counts["missed"] = int(is_missed.sum())
    return {"AP50": base, **_gains(gains, base), "counts": counts}


def _gains(repaired: Mapping[str, float], base: float) -> dict[str, float]:
    if base == UNMEASURED:
        return dict.fromkeys(repaired, UNMEASURED)
    # Without missed objects, nothing may be left to find.
    return {
        name: 1 - base if value == UNMEASURED else max(value - base, 0.0)
        for name, value in repaired.items()
    }


def _best(pairs: Pairs, count: int) -> _Best:
    """The last pair of a detection is that with the highest IoU."""
    best = _Best(np.zeros(count), np.full(count, -1, np.int64))
    best.iou[pairs.detection] = pairs.iou
    best.object[pairs.detection] = pairs.object
    return best


def _classify(same: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the index in `FALSE_DETECTIONS` of each detection, if it is false: int64 [N].

    Args:
        same, other: float64 [N], highest IoU with an object of its own and of another category.
    """
    conditions = {
        "localisation": (same >= BACKGROUND) & (same < FOREGROUND),
        "class": other >= FOREGROUND,
        "duplicate": same >= FOREGROUND,
        "background": np.maximum(same, other) <= BACKGROUND,
    }
    return np.select(
        list(conditions.values()),
        [FALSE_DETECTIONS.index(name) for name in conditions],
        FALSE_DETECTIONS.index("both"),
    )


def _find_repairs(
    error: np.ndarray,
    is_false: np.ndarray,
    scores: np.ndarray,
    same: _Best,
    other: _Best,
    is_found: np.ndarray,
) -> _Repairs:
    """Finds for each object that is not found the best detection that would find it."""
    is_class = error == FALSE_DETECTIONS.index("class")
    is_place = error == FALSE_DETECTIONS.index("localisation")
    target = np.where(is_class, other.object, same.object)
    found = np.append(is_found, True)[target]
    candidates = np.flatnonzero(is_false & (is_class | is_place) & ~found)
    order = candidates[np.lexsort((-scores[candidates], target[candidates]))]
    objects, firsts = np.unique(target[order], return_index=True)
    return _Repairs(order[firsts], objects)


def _average_precision(detections: _Detections, num_objects: np.ndarray) -> float:
    """Averages AP at one IoU over the categories with objects; -1 if there are none."""
    order = np.lexsort((-detections.scores, detections.categories))
    categories, is_hit = detections.categories[order], detections.is_hit[order, None]
    bounds = np.searchsorted(categories, np.arange(len(num_objects) + 1))
    return mean_of_measured(
        [
            average_precision(
                is_hit[bounds[category] : bounds[category + 1]],
                ~is_hit[bounds[category] : bounds[category + 1]],
                int(num_objects[category]),
            )
            for category in np.flatnonzero(num_objects)
        ]
    )
