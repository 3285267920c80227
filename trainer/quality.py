"""Whether scores can be believed: LRP, calibration, agreement with the true IoU, lost AP.

docs/METRICS.md defines the numbers and says how to read them.

Axes: N detections, A area ranges, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainer.coverage import measure_coverage
from trainer.error_classes import measure_errors
from trainer.matching import AREAS, Overlaps, find_overlaps, match
from trainer.quality_measures import (
    TRUE_FROM_IOU,
    UNMEASURED,
    Agreement,
    Lrp,
    agreement,
    average_precision,
    calibration_errors,
    lrp_errors,
    mean_of_measured,
)

# Boxes have no other score; a system without a MaskIoU head has no mask_iou.
SCORES = {"bbox": ("box_score",), "segm": ("box_score", "mask_iou", "mask_score")}
_RANKED_BY = {"bbox": "box_score", "segm": "mask_score"}
# The calibration errors take any overlap for a match and LRP one of 0.5; AP averages over ten.
_THRESHOLDS = np.append(0.0, np.linspace(0.5, 0.95, 10))
_ANY, _HALF, _COCO = 0, 1, slice(1, None)


class _Measured(NamedTuple):
    """What is measured of one score in one area range, of a category or of all."""

    ap: float
    lrp: Lrp
    optimal_lrp: Lrp
    laece: float
    laace: float
    agreement: Agreement


_NO_LRP = Lrp(*[UNMEASURED] * len(Lrp._fields))
_NOTHING = agreement(np.zeros(0), np.zeros(0))
_UNMEASURED = _Measured(UNMEASURED, _NO_LRP, _NO_LRP, UNMEASURED, UNMEASURED, _NOTHING)
# By name of the area range: all categories together, and each.
_Table = dict[str, tuple[_Measured, list[_Measured]]]


def measure_quality(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int],
    names: Mapping[int, str],
) -> dict[str, dict]:
    """Measures what the scores of detections are worth, and what AP is lost to.

    Args:
        ground_truth, results, kind, image_ids: as for `trainer.matching.find_overlaps`; results
            also have box_score, and with masks mask_score and, if there is one, mask_iou.
        names: unique names of the categories of the ground truth by COCO id.

    Returns:
        {"quality": {score: {"LRP", "oLRP", "LaECE", "LaACE", "components", "agreement", "ranking",
        "by_category": {name: the same and "threshold"}, "by_size": {size: the same}, "coverage": as
        `trainer.coverage.measure_coverage` returns it, for the detections above the thresholds of
        oLRP}}, "errors": as `trainer.error_classes.measure_errors` returns them}. -1 if there is
        nothing to measure; None for a correlation or a share of a gap that is not defined.
    """
    overlaps = find_overlaps(ground_truth, results, kind, image_ids)
    scores = {
        name: np.array([results[index][name] for index in overlaps.entry], np.float64)
        for name in SCORES[kind]
        if all(name in entry for entry in results)
    }
    tables = {name: _measure(overlaps, values) for name, values in scores.items()}
    ceiling = _measure(overlaps, scores["box_score"] * overlaps.best_iou())
    unique = [names[category_id] for category_id in overlaps.category_ids]
    best = _RANKED_BY[kind]
    kept, iou = _operating_point(overlaps, scores[best], tables[best])
    return {
        "quality": {
            name: {
                **_report_table(table, tables["box_score"], ceiling, unique),
                "coverage": measure_coverage(scores[name][kept], iou[kept]),
            }
            for name, table in tables.items()
        },
        "errors": measure_errors(overlaps, scores[best]),
    }


def _operating_point(
    overlaps: Overlaps, scores: np.ndarray, table: _Table
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which detections reach their category's threshold of optimal LRP, and their IoUs.

    Args:
        overlaps, scores: as for `_measure`.
        table: what it returned.

    Returns:
        bool [N], without those that are ignored; float64 [N], 0 for false detections.
    """
    thresholds = np.array([row.optimal_lrp.threshold for row in table["all"][1]])
    matches = match(overlaps, scores, np.array([TRUE_FROM_IOU]))
    hit, false, pair = (values[:, 0, 0] for values in matches)
    lowest = np.where(thresholds == UNMEASURED, np.inf, thresholds)[overlaps.category]
    return (hit | false) & (scores >= lowest), overlaps.iou_of(pair)


def _measure(overlaps: Overlaps, scores: np.ndarray) -> _Table:
    """Measures detections ranked by scores [N]."""
    matches = match(overlaps, scores, _THRESHOLDS)
    iou = overlaps.iou_of(matches.pair[..., : _HALF + 1])
    num_objects = overlaps.count_objects()
    order = np.lexsort((-scores, overlaps.category))
    bounds = np.searchsorted(overlaps.category[order], np.arange(len(num_objects) + 1))
    table = {}
    for area, name in enumerate(AREAS):
        rows = [_UNMEASURED] * len(num_objects)
        for category in np.flatnonzero(num_objects[:, area]):
            chosen = order[bounds[category] : bounds[category + 1]]
            rows[category] = _measure_category(
                scores[chosen],
                matches.hit[chosen, area],
                matches.false[chosen, area],
                iou[chosen, area],
                int(num_objects[category, area]),
            )
        is_true = matches.hit[:, area, _HALF]
        pooled = agreement(scores[is_true], iou[is_true, area, _HALF])
        table[name] = _average(rows, pooled), rows
    return table


def _measure_category(
    scores: np.ndarray, hit: np.ndarray, false: np.ndarray, iou: np.ndarray, num_objects: int
) -> _Measured:
    """Measures one category's detections, the best first.

    Args:
        scores: float64 [N].
        hit, false: bool [N, T].
        iou: float64 [N, 2], at the first two thresholds.
        num_objects: above 0.
    """
    counts = hit | false
    some, half = counts[:, _ANY], counts[:, _HALF]
    true = hit[:, _HALF]
    lrp, optimal_lrp = lrp_errors(scores[half], true[half], iou[half, _HALF], num_objects)
    laece, laace = calibration_errors(scores[some], iou[some, _ANY])
    return _Measured(
        average_precision(hit[:, _COCO], false[:, _COCO], num_objects),
        lrp,
        optimal_lrp,
        laece,
        laace,
        agreement(scores[true], iou[true, _HALF]),
    )


def _average(rows: Sequence[_Measured], pooled: Agreement) -> _Measured:
    """Averages over the categories that can be measured; agreement is that of all detections."""
    return _Measured(
        mean_of_measured([row.ap for row in rows]),
        Lrp(*map(mean_of_measured, zip(*(row.lrp for row in rows), strict=True))),
        Lrp(*map(mean_of_measured, zip(*(row.optimal_lrp for row in rows), strict=True))),
        mean_of_measured([row.laece for row in rows]),
        mean_of_measured([row.laace for row in rows]),
        pooled,
    )


def _report_table(table: _Table, class_score: _Table, ceiling: _Table, names: list[str]) -> dict:
    whole = {
        area: _report(overall, class_score[area][0], ceiling[area][0])
        for area, (overall, _) in table.items()
    }
    rows = zip(names, table["all"][1], class_score["all"][1], ceiling["all"][1], strict=True)
    by_category = {
        name: {**_report(row, by_class, best), "threshold": row.optimal_lrp.threshold}
        for name, row, by_class, best in rows
    }
    return {**whole.pop("all"), "by_category": by_category, "by_size": whole}


def _report(measured: _Measured, class_score: _Measured, ceiling: _Measured) -> dict:
    gap = ceiling.ap - class_score.ap
    return {
        "LRP": measured.lrp.total,
        "oLRP": measured.optimal_lrp.total,
        "LaECE": measured.laece,
        "LaACE": measured.laace,
        "components": {
            "LRP": _report_parts(measured.lrp),
            "oLRP": _report_parts(measured.optimal_lrp),
        },
        "agreement": measured.agreement._asdict(),
        "ranking": {
            "AP": measured.ap,
            "AP_class_score": class_score.ap,
            "AP_ceiling": ceiling.ap,
            "gap_closed": (measured.ap - class_score.ap) / gap if gap > 0 else None,
        },
    }


def _report_parts(lrp: Lrp) -> dict[str, float]:
    return {
        "localisation": lrp.localisation,
        "FP": lrp.false_positives,
        "FN": lrp.false_negatives,
    }
