"""Fits maps from scores to expected IoU on half of the images, and measures them on the others.

Axes: N detections.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from data.errors import UserError
from trainer.calibration_file import FittedMap, FittedMaps
from trainer.matching import Overlaps, find_overlaps, match
from trainer.quality import SCORES, measure_quality
from trainer.quality_measures import TRUE_FROM_IOU
from trainer.score_maps import METHODS

MIN_IMAGES = 20
# Detections to fit a map to: one of all classes, and one of a class.
MIN_DETECTIONS = 20
MIN_DETECTIONS_OF_CLASS = 200


class Scored(NamedTuple):
    """Scored detections and what they should have found.

    Attributes:
        ground_truth: COCO-format dict with complete annotations.
        results: entries in COCO results format with the scores of `trainer.quality.SCORES`.
        kind: "segm", or "bbox" for a system without masks.
        labels: the network's labels by COCO id.
    """

    ground_truth: Mapping
    results: Sequence[Mapping]
    kind: str
    labels: Mapping[int, int]


def halve(image_ids: Collection[int]) -> tuple[list[int], list[int]]:
    """Divides images into halves by a hash of their ids, so that their order has no influence.

    Raises:
        UserError: there are too few.
    """
    _require_images(len(image_ids))
    ordered = sorted(image_ids, key=lambda key: hashlib.sha256(str(key).encode()).digest())
    return ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]


def require_content(ground_truth: Mapping) -> None:
    """Raises a UserError if there are too few images, or no objects."""
    _require_images(len(ground_truth["images"]))
    if all(annotation["iscrowd"] for annotation in ground_truth["annotations"]):
        raise UserError(
            "the records have no objects to compare detections with: give records of annotated "
            "images, or their --eval_annotation_file."
        )


def _require_images(count: int) -> None:
    if count < MIN_IMAGES:
        raise UserError(
            f"the records have {count} image{'s' * (count != 1)}, and a calibration needs at least "
            f"{MIN_IMAGES}: half of them to fit it, the others to measure it."
        )


def fit_maps(scored: Scored, image_ids: Iterable[int], method: str) -> FittedMaps:
    """Fits a map for each score, and for each class with enough detections one of its own.

    `box_score` and `mask_score` are fitted to all detections that count, false ones with an IoU of
    0. `mask_iou` is the IoU that is to be expected of a true detection, and fitted to those only;
    there is no map of it if they are too few.

    Args:
        scored: detections.
        image_ids: images to fit to.
        method: a key of `trainer.score_maps.METHODS`.

    Raises:
        UserError: there are too few detections, or none is true.
    """
    found = find_overlaps(scored.ground_truth, scored.results, scored.kind, image_ids)
    if len(found.entry) < MIN_DETECTIONS:
        raise UserError(
            f"the model finds {len(found.entry)} objects in the half of the images that the "
            f"calibration is fitted to, and {MIN_DETECTIONS} are needed: give more images, check "
            "that they are like those of the training, or train longer."
        )
    if not len(found.pairs.iou):
        raise UserError(
            "nothing that the model finds overlaps an object of its class: give records with "
            "objects of the model's classes, or train longer."
        )
    fitted = {}
    for score in SCORES[scored.kind]:
        is_given = all(score in entry for entry in scored.results)
        if is_given and (maps := _fit_score(found, scored, score, method)):
            fitted[score] = maps
    return fitted


def _fit_score(found: Overlaps, scored: Scored, score: str, method: str) -> list[FittedMap]:
    """Returns the map of all classes first; nothing if there are too few detections."""
    fit = METHODS[method]
    scores = np.array([scored.results[index][score] for index in found.entry], np.float64)
    chosen, ious = _targets(found, scores, score == "mask_iou")
    if chosen.sum() < MIN_DETECTIONS:
        return []
    maps = [FittedMap(None, int(chosen.sum()), fit(scores[chosen], ious[chosen]))]
    for category, category_id in enumerate(found.category_ids):
        own = chosen & (found.category == category)
        if own.sum() >= MIN_DETECTIONS_OF_CLASS and category_id in scored.labels:
            label = scored.labels[category_id]
            maps.append(FittedMap(label, int(own.sum()), fit(scores[own], ious[own])))
    return maps


def _targets(found: Overlaps, scores: np.ndarray, if_true: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns which detections to fit to, bool [N], and the IoUs of all, float64 [N].

    They are matched as for LaECE₀, or for the agreement with the true IoU.
    """
    matches = match(found, scores, np.array([TRUE_FROM_IOU if if_true else 0.0]))
    hit, false, pair = (values[:, 0, 0] for values in matches)
    return hit if if_true else hit | false, found.iou_of(pair)


def apply_maps(scored: Scored, fitted: FittedMaps) -> Scored:
    """Returns detections with the scores that the network gives once it is calibrated."""
    by_label = {score: {one.label: one.map for one in maps} for score, maps in fitted.items()}
    results = []
    for entry in scored.results:
        label = scored.labels.get(entry["category_id"])
        mapped = {
            score: float(np.float32(maps.get(label, maps[None])(entry[score])))
            for score, maps in by_label.items()
        }
        results.append({**entry, **mapped})
    return scored._replace(results=results)


def measure(scored: Scored, image_ids: Iterable[int]) -> dict[str, dict[str, float]]:
    """Measures the scores of the detections in some images.

    Returns:
        {score: {"LaECE", "LaACE", "AP", "mean_error"}}, as docs/METRICS.md defines them.
    """
    names = {
        category["id"]: f"{category['name']} ({category['id']})"
        for category in scored.ground_truth["categories"]
    }
    given = scored.ground_truth, scored.results, scored.kind, image_ids, names
    return {
        score: {
            "LaECE": quality["LaECE"],
            "LaACE": quality["LaACE"],
            "AP": quality["ranking"]["AP"],
            "mean_error": quality["agreement"]["mean_error"],
        }
        for score, quality in measure_quality(*given)["quality"].items()
    }
