"""Checks and completes the box, mask and area of a COCO annotation.

Both the converter and the evaluation use this module, so they see the same objects.

Axes: R runs of one mask, V points of one polygon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from data.findings import InvalidAnnotation, SkippedItems
from data.numbers import is_finite_number
from data.segmentation import is_relative, mask_area, mask_box, read_mask

Box = tuple[float, float, float, float]

NARROW = "the box is less than a pixel wide or high; training ignores it"
# Box formats that programs use by mistake, as functions from them to x, y, width, height.
_OTHER_READINGS = {
    "x1, y1, x2, y2": lambda a, b, c, d: (a, b, c - a, d - b),
    "y, x, height, width": lambda a, b, c, d: (b, a, d, c),
    "y1, x1, y2, x2": lambda a, b, c, d: (b, a, d - b, c - a),
    "centre x, centre y, width, height": lambda a, b, c, d: (a - c / 2, b - d / 2, c, d),
}
# Minimum IoU of a box and its mask's bounding box, both grown by a pixel on each side. The lowest
# in COCO is 0.6.
_POOR_IOU, _DOUBTFUL_IOU, _GOOD_IOU = 0.5, 0.75, 0.9


class Outline(NamedTuple):
    """Where an annotated object lies in its image."""

    box: Box  # y1, x1, y2, x2 in pixels, inside the image
    area: float  # the annotation's own, in pixels; else the mask's, else the box's
    is_crowd: bool
    run_lengths: np.ndarray | None  # int64 [R]; None where no mask is wanted
    polygons: list[np.ndarray]  # float64 [2 V] each, x, y in turn; none of an RLE


def read_outline(annotation: Mapping, height: int, width: int, include_mask: bool) -> Outline:
    """Checks and completes one annotation.

    Args:
        annotation: COCO's: bbox; segmentation if the mask is included; area and iscrowd if known.
        height, width: size of the image in pixels.
        include_mask: whether to read the mask, which is then required.

    Raises:
        InvalidAnnotation: box, mask or area cannot be used.
    """
    y1, x1, y2, x2 = box = clip_box(annotation["bbox"], height, width)
    area, runs, outlines = (y2 - y1) * (x2 - x1), None, []
    if include_mask:
        runs, outlines = read_mask(annotation.get("segmentation"), height, width)
        if not (area := mask_area(runs)):
            raise InvalidAnnotation(
                f"its mask has no pixels inside the image of {width}x{height} pixels"
            )
    area = annotation.get("area", area)
    if not is_finite_number(area) or area < 0:
        raise InvalidAnnotation(f"the area {area!r} is not a number of at least 0")
    return Outline(box, area, bool(annotation.get("iscrowd", 0)), runs, outlines)


def complete_annotation(annotation: Mapping, height: int, width: int) -> dict:
    """Returns the annotation as the evaluation reads it.

    Args:
        annotation: as for `read_outline`; segmentation may be absent.
        height, width: size of the image in pixels.

    Returns:
        A copy with bbox (inside the image), area, iscrowd and, if there is one, segmentation as
        compressed RLE.

    Raises:
        InvalidAnnotation: box, mask or area cannot be used.
    """
    outline = read_outline(annotation, height, width, bool(annotation.get("segmentation")))
    y1, x1, y2, x2 = outline.box
    complete = {
        **annotation,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": outline.area,
        "iscrowd": int(outline.is_crowd),
    }
    if outline.run_lengths is not None:
        size = [height, width]
        plain = {"size": size, "counts": outline.run_lengths.tolist()}
        counts = coco_mask.frPyObjects(plain, height, width)["counts"]
        complete["segmentation"] = {"size": size, "counts": counts.decode("ascii")}
    return complete


def complete_annotations(
    annotations: Iterable[Mapping], height: int, width: int, skipped: SkippedItems
) -> Iterator[dict]:
    """Yields one image's completed annotations; `skipped` records those that cannot be used."""
    for annotation in annotations:
        try:
            yield complete_annotation(annotation, height, width)
        except InvalidAnnotation as error:
            skipped.add_annotation(str(error), annotation["id"], annotation["image_id"])


def clip_box(bbox: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Turns a COCO box into corners and clips it to the image.

    Args:
        bbox: x, y, width, height in pixels.
        height, width: size of the image in pixels.

    Returns:
        y1, x1, y2, x2 in pixels, 0 <= y1 < y2 <= height and likewise in x.

    Raises:
        InvalidAnnotation: not four finite numbers, a negative side, or no area inside the image.
    """
    if not isinstance(bbox, Sequence) or isinstance(bbox, str) or len(bbox) != 4:
        raise InvalidAnnotation(f"the box {bbox!r} is not four numbers")
    if not all(is_finite_number(value) for value in bbox):
        raise InvalidAnnotation(f"the box {bbox!r} is not four finite numbers")
    x, y, box_width, box_height = bbox
    if is_relative(bbox):
        raise InvalidAnnotation(
            f"the box {bbox!r} lies between 0 and 1, relative to the image; give pixels"
        )
    if box_width < 0 or box_height < 0:
        raise InvalidAnnotation(f"the box {bbox!r} has a negative side")
    y1, y2 = (min(max(value, 0.0), height) for value in (y, y + box_height))
    x1, x2 = (min(max(value, 0.0), width) for value in (x, x + box_width))
    # Records hold fractions of the image in single precision, where a tiny side becomes 0.
    if np.float32(y1 / height) >= np.float32(y2 / height) or np.float32(x1 / width) >= np.float32(
        x2 / width
    ):
        raise InvalidAnnotation(
            f"the box {bbox!r} has no area inside the image of {width}x{height} pixels"
        )
    return y1, x1, y2, x2


def find_doubts(annotation: Mapping, outline: Outline, height: int, width: int) -> list[str]:
    """Lists what looks wrong about a usable annotation, as kinds of `data.findings.Warnings`.

    Args:
        annotation: COCO's.
        height, width: size of the image in pixels.
        outline: what `read_outline` made of it.
    """
    doubts = []
    if disagreement := _find_disagreement(annotation, outline, height, width):
        doubts.append(disagreement)
    if outline.polygons and len(outline.polygons) < len(annotation["segmentation"]):
        doubts.append(
            "a part with fewer than three points is ignored; the object's other polygons are used"
        )
    y1, x1, y2, x2 = outline.box
    if (y2 - y1 < 1 or x2 - x1 < 1) and not outline.is_crowd:
        doubts.append(NARROW)
    return doubts


def _find_disagreement(annotation: Mapping, outline: Outline, height: int, width: int) -> str:
    """Says how box and mask disagree; empty when they do not, or where there is no mask.

    Boxes and masks drawn by hand differ by a few pixels. If they differ by more but agree when the
    box or mask is read in another common format, that format was probably meant.
    """
    if outline.run_lengths is None:
        return ""
    mask = mask_box(outline.run_lengths, height)
    iou = _iou(outline.box, mask)
    if iou >= _DOUBTFUL_IOU:
        return ""
    for reading, convert in _OTHER_READINGS.items():
        x, y, box_width, box_height = convert(*annotation["bbox"])
        if _iou((y, x, y + box_height, x + box_width), mask) > _GOOD_IOU:
            return f"the box is {reading} instead of x, y, width, height"
    left, top, right, bottom = mask_box(outline.run_lengths, width)
    if not outline.polygons and _iou(outline.box, (top, left, bottom, right)) > _GOOD_IOU:
        return "the mask's run lengths go row by row instead of column by column"
    return "the box does not fit the mask" if iou < _POOR_IOU else ""


def _iou(box: Box, other: Box) -> float:
    """Intersection over union of two boxes, both grown by a pixel to each side."""
    y1, x1, y2, x2 = box
    top, left, bottom, right = other
    common_height = max(min(y2, bottom) - max(y1, top) + 2, 0.0)
    common = common_height * max(min(x2, right) - max(x1, left) + 2, 0.0)
    area, other_area = (y2 - y1 + 2) * (x2 - x1 + 2), (bottom - top + 2) * (right - left + 2)
    return common / (area + other_area - common)
