"""Average precision and recall of detections, as COCO defines them.

The numbers are those of pycocotools' COCOeval, up to rounding, from the C++ of faster-coco-eval.

Axes: T IoU thresholds; R recall thresholds; K categories; A area ranges; D limits on detections per
image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as coco_mask

from trainer.coco_report import DETECTIONS_COUNTED, METRICS

_LOGGER = logging.getLogger(__name__)
_SHAPES = {"bbox": "bbox", "segm": "segmentation"}
_ONLY_CATEGORY = {"id": 1}
# COCO's metrics count at most this many detections per image.
_COUNTED = (1, 10, DETECTIONS_COUNTED)


class Curves(NamedTuple):
    """The values that COCO's metrics average; -1 where there is no ground truth.

    precision: float64 [T, R, K, A, D], the highest at this or a higher recall. recall: float64 [T,
    K, A, D].
    """

    precision: np.ndarray
    recall: np.ndarray


def evaluate_results(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int],
    max_detections: int = DETECTIONS_COUNTED,
) -> tuple[dict[str, float], dict[int, float]]:
    """Runs COCO's evaluation of one kind of result.

    Args:
        ground_truth: COCO-format dict; every annotation has area and iscrowd, and with kind "segm"
            a segmentation in any of its forms.
        results: entries in COCO results format, with bbox or segmentation (compressed RLE),
            depending on `kind`; may be empty. Among equal scores in an image, the earlier entry
            ranks first.
        kind: "bbox" or "segm".
        image_ids: images of the ground truth to evaluate.
        max_detections: limit per image; if it is above COCO's 100, AP with this limit is also
            measured.

    Returns:
        The 12 numbers of `METRICS`, above 100 detections also `AP@max_detections`, and AP by COCO
        category id; -1 where there is no ground truth.
    """
    curves = measure_curves(ground_truth, results, kind, image_ids, max_detections)
    counted = len(_COUNTED)
    summary = COCOeval_faster(iouType=kind, print_function=_LOGGER.debug)
    summary.eval = {
        "precision": curves.precision[..., :counted],
        "recall": curves.recall[..., :counted],
    }
    summary.summarize()
    metrics = dict(zip(METRICS, summary.stats.tolist(), strict=True))
    if curves.precision.shape[-1] > counted:
        metrics[f"AP@{max_detections}"] = _average(curves.precision[..., 0, -1])
    by_category = {}
    for index, category_id in enumerate(_category_ids(ground_truth)):
        # Objects of every size, 100 detections per image.
        by_category[category_id] = _average(curves.precision[:, :, index, 0, counted - 1])
    return metrics, by_category


def measure_curves(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int],
    max_detections: int = DETECTIONS_COUNTED,
) -> Curves:
    """Measures precision and recall of one kind of result, for categories by ascending COCO id.

    The arguments are those of `evaluate_results`. Categories are measured one after the other,
    because the evaluator processes every category in every image that it receives, and most have
    neither objects nor detections there.
    """
    numbers = {image_id: number for number, image_id in enumerate(sorted(image_ids))}
    sizes = {
        numbers[image["id"]]: {"height": image["height"], "width": image["width"]}
        for image in ground_truth["images"]
        if image["id"] in numbers
    }
    shape = _SHAPES[kind]
    truths = _by_category(ground_truth["annotations"], ("area", "iscrowd", shape), numbers)
    found = _by_category(results, ("score", shape), numbers)
    category_ids = _category_ids(ground_truth)
    allowed = sorted({*_COUNTED, max(max_detections, DETECTIONS_COUNTED)})
    curves = _unmeasured(kind, len(category_ids), len(allowed))
    for index, category_id in enumerate(category_ids):
        if category_id in truths:
            entries = truths[category_id], found.get(category_id, [])
            measured = _measure_category(*entries, kind, sizes, allowed)
            curves.precision[:, :, index] = measured["precision"][:, :, 0]
            curves.recall[:, index] = measured["recall"][:, 0]
    return curves


def _category_ids(ground_truth: Mapping) -> list[int]:
    return sorted({category["id"] for category in ground_truth["categories"]})


def _average(precision: np.ndarray) -> float:
    """Averages the measured values; -1 if there are none."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _unmeasured(kind: str, num_categories: int, num_allowed: int) -> Curves:
    params = COCOeval_faster(iouType=kind).params
    t, r, a = (len(values) for values in (params.iouThrs, params.recThrs, params.areaRng))
    k, d = num_categories, num_allowed
    return Curves(np.full([t, r, k, a, d], -1.0), np.full([t, k, a, d], -1.0))


def _by_category(
    entries: Iterable[Mapping], fields: Sequence[str], numbers: Mapping[int, int]
) -> dict[int, list[dict]]:
    """Groups some fields of the entries of the numbered images by COCO's category id.

    Images are numbered, because the evaluator converts ids to float64, which cannot distinguish ids
    above 2⁵³, such as hashes of file names. Annotations are numbered from 1, because id 0 means "no
    match" there.
    """
    by_category: dict[int, list[dict]] = {}
    for entry in entries:
        if entry["image_id"] in numbers:
            same = by_category.setdefault(entry["category_id"], [])
            copied = {field: entry[field] for field in fields}
            copied["id"] = len(same) + 1
            copied["image_id"] = numbers[entry["image_id"]]
            copied["category_id"] = _ONLY_CATEGORY["id"]
            same.append(copied)
    return by_category


def _measure_category(
    truths: list[dict],
    found: list[dict],
    kind: str,
    sizes: Mapping[int, Mapping],
    allowed: list[int],
) -> dict[str, np.ndarray]:
    """Computes the evaluator's arrays for one category: K is 1."""
    _add_areas(found, kind)
    wanted = {entry["image_id"] for entry in truths}
    offered = {entry["image_id"] for entry in found}
    if kind == "segm":
        _drop_masks((*truths, *found), wanted & offered)
    images = [{"id": number, **sizes[number]} for number in wanted | offered]
    evaluation = COCOeval_faster(
        _index(truths, images),
        _index(found, images),
        kind,
        print_function=_LOGGER.debug,
        # The library holds the GIL while it computes IoUs, so more threads would only wait.
        rle_iou_max_workers=1,
    )
    evaluation.params.maxDets = allowed
    evaluation.evaluate()
    return evaluation.eval


def _add_areas(found: Iterable[dict], kind: str) -> None:
    for result in found:
        if kind == "segm":
            result["area"] = float(coco_mask.area(result["segmentation"]))
        else:
            result["area"] = result["bbox"][2] * result["bbox"][3]


def _drop_masks(entries: Iterable[dict], matchable: set[int]) -> None:
    """Removes masks without a counterpart in their image, because decoding masks is expensive."""
    for entry in entries:
        if entry["image_id"] not in matchable:
            del entry["segmentation"]


def _index(entries: list[dict], images: list[dict]) -> COCO:
    indexed = COCO()
    indexed.dataset = {"images": images, "annotations": entries, "categories": [_ONLY_CATEGORY]}
    indexed.createIndex()
    return indexed
