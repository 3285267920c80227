"""Reads masks to be rated: COCO results of any program, or the annotations themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from data import files
from data.errors import UserError
from data.findings import InvalidAnnotation
from data.numbers import is_finite_number
from trainer.coco_ground_truth import segmentation_to_rle

Entry = dict[str, Any]


def read_results(path: str, images: Iterable[Mapping]) -> list[Entry]:
    """Reads entries in COCO results format, each with image_id, category_id, segmentation, score.

    Args:
        path: the JSON.
        images: those of the annotation file.

    Raises:
        UserError: it cannot be read, is empty, or does not belong to the images.
    """
    try:
        with files.open_file(path, "rb") as file:
            entries = json.loads(file.read())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); check --results.") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} is not in COCO results format, which is a list of detections.")
    if not entries:
        raise UserError(f"{path} is empty: there is nothing to rate.")
    known = {image["id"] for image in images}
    for index, entry in enumerate(entries):
        if problem := _problem(entry, known):
            raise UserError(f"{path}: entry {index} {problem}.")
    return entries


def _problem(entry: object, known: set) -> str:
    if not isinstance(entry, dict):
        return "is not a JSON object"
    for key in ("image_id", "category_id", "segmentation", "score"):
        if key not in entry:
            return f"has no {key!r}"
    if not is_finite_number(entry["score"]):
        return f"has the score {entry['score']!r}, which is not a number"
    if entry["image_id"] not in known:
        return (
            f"is of image {entry['image_id']!r}, which --object_annotations_file does not have: "
            "give the annotation file of the images that the results were made for"
        )
    return ""


def annotations_as_results(ground_truth: Mapping) -> list[Entry]:
    """Returns the annotations, without crowds, as results with a score of 1; they keep their ids.

    Raises:
        UserError: there are none.
    """
    entries = [
        {
            "id": annotation["id"],
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": annotation["bbox"],
            "segmentation": _plain(annotation["segmentation"]),
            "score": 1.0,
        }
        for annotation in ground_truth["annotations"]
        if not annotation["iscrowd"] and annotation.get("segmentation")
    ]
    if not entries:
        raise UserError(
            "--object_annotations_file has no masks to rate; give --results, or annotations with a "
            "segmentation."
        )
    return entries


def _plain(segmentation: Mapping | Sequence) -> Mapping | list:
    """The segmentation in types that JSON knows."""
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        return {**segmentation, "counts": counts if isinstance(counts, str) else list(counts)}
    return [list(polygon) for polygon in segmentation]


def decode_mask(entry: Mapping, height: int, width: int) -> np.ndarray:
    """Draws the mask of an entry: bool [height, width].

    Raises:
        UserError: its segmentation is malformed, or of another size.
    """
    try:
        rle = segmentation_to_rle(entry["segmentation"], height, width)
    except InvalidAnnotation as error:
        raise UserError(f"a mask of image {entry['image_id']} cannot be rated: {error}.") from None
    return coco_mask.decode(rle).astype(bool)
