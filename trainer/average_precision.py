"""Average precision and recall of detections, as COCO and LVIS define them.

The numbers are those of pycocotools' COCOeval, up to rounding, from the C++ of faster-coco-eval.
It also has the rules of LVIS, and Boundary IoU (Cheng et al., CVPR 2021): the lower of the IoU of
two masks and the IoU of their pixels within 2 % of the image's diagonal from the contour.

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
from trainer.lvis_federation import DETECTIONS_COUNTED_BY_LVIS, FREQUENCIES, Federation

_LOGGER = logging.getLogger(__name__)
_SHAPES = {"bbox": "bbox", "segm": "segmentation", "boundary": "segmentation"}
# The evaluator asks for a frequency in LVIS style; categories are grouped by it here instead.
_ONLY_CATEGORY = {"id": 1, "frequency": "f"}
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
        ground_truth: COCO-format dict; every annotation has area and iscrowd, and if masks are
            compared a segmentation in any of its forms.
        results: entries in COCO results format, with bbox or segmentation (compressed RLE),
            depending on `kind`; may be empty. Among equal scores in an image, the earlier entry
            ranks first.
        kind: "bbox", "segm", or "boundary" for the Boundary IoU of masks.
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


def evaluate_lvis(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int],
    federation: Federation,
) -> tuple[dict[str, float], dict[int, float]]:
    """Runs LVIS's evaluation of one kind of result (Gupta et al., CVPR 2019, section 2).

    A detection counts only in images whose objects of its category are annotated, or that are known
    to have none; in images where the annotation of the category is not complete, it can only be
    right. LVIS counts the 300 best detections of an image.

    Args:
        ground_truth, results, kind, image_ids: as for `evaluate_results`.
        federation: what is known of which category in which image.

    Returns:
        AP, AP50, AP75, APs, APm, APl; APr, APc and APf of rare, common and frequent categories;
        AR300, ARs, ARm, ARl; and AP by COCO category id. -1 where there is no ground truth.
    """
    limit = DETECTIONS_COUNTED_BY_LVIS
    best = _best_of_each_image(results, limit)
    curves = measure_curves(ground_truth, best, kind, image_ids, limit, federation)
    precision, recall = curves.precision[..., -1], curves.recall[..., -1]
    metrics = {
        "AP": _average(precision[..., 0]),
        "AP50": _average(precision[0, ..., 0]),
        "AP75": _average(precision[5, ..., 0]),
    }
    metrics |= {f"AP{size}": _average(precision[..., n]) for n, size in enumerate("sml", 1)}
    category_ids = _category_ids(ground_truth)
    for frequency in FREQUENCIES:
        chosen = [federation.frequency.get(key) == frequency for key in category_ids]
        metrics[f"AP{frequency}"] = _average(precision[:, :, chosen, 0])
    metrics[f"AR{limit}"] = _average(recall[..., 0])
    metrics |= {f"AR{size}": _average(recall[..., n]) for n, size in enumerate("sml", 1)}
    by_category = {
        category_id: _average(precision[:, :, index, 0])
        for index, category_id in enumerate(category_ids)
    }
    return metrics, by_category


def measure_curves(
    ground_truth: Mapping,
    results: Sequence[Mapping],
    kind: str,
    image_ids: Iterable[int],
    max_detections: int = DETECTIONS_COUNTED,
    federation: Federation | None = None,
) -> Curves:
    """Measures precision and recall of one kind of result, for categories by ascending COCO id.

    The arguments are those of `evaluate_results` and `evaluate_lvis`. Categories are measured one
    after the other, because the evaluator processes every category in every image that it receives,
    and most have neither objects nor detections there.
    """
    ids = sorted(image_ids)
    numbers = {image_id: number for number, image_id in enumerate(ids)}
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
            present = {entry["image_id"] for same in entries for entry in same}
            images = [{"id": number, **sizes[number]} for number in present]
            for image in images if federation else ():
                image |= federation.lists_of(ids[image["id"]], category_id, _ONLY_CATEGORY["id"])
            measured = _measure_category(*entries, kind, images, allowed, bool(federation))
            curves.precision[:, :, index] = measured["precision"][:, :, 0]
            curves.recall[:, index] = measured["recall"][:, 0]
    return curves


def _best_of_each_image(results: Sequence[Mapping], limit: int) -> list[Mapping]:
    by_image: dict[int, list[Mapping]] = {}
    for entry in results:
        by_image.setdefault(entry["image_id"], []).append(entry)
    ranked = (sorted(same, key=lambda e: e["score"], reverse=True) for same in by_image.values())
    return [entry for same in ranked for entry in same[:limit]]


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
    images: list[dict],
    allowed: list[int],
    lvis_style: bool,
) -> dict[str, np.ndarray]:
    """Computes the evaluator's arrays for one category: K is 1."""
    _add_areas(found, kind)
    if kind != "bbox":
        wanted = {entry["image_id"] for entry in truths}
        _drop_masks((*truths, *found), wanted & {entry["image_id"] for entry in found})
    evaluation = COCOeval_faster(
        _index(truths, images),
        _index(found, images),
        kind,
        print_function=_LOGGER.debug,
        lvis_style=lvis_style,
        # The library holds the GIL while it computes IoUs, so more threads would only wait.
        rle_iou_max_workers=1,
    )
    evaluation.params.maxDets = allowed
    evaluation.evaluate()
    return evaluation.eval


def _add_areas(found: Iterable[dict], kind: str) -> None:
    for result in found:
        if kind == "bbox":
            result["area"] = result["bbox"][2] * result["bbox"][3]
        else:
            result["area"] = float(coco_mask.area(result["segmentation"]))


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
