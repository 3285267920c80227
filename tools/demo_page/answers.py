"""Detections and models as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from tools.demo_page.limits import Limits

if TYPE_CHECKING:
    from trainer.predictor import Detections, Predictor

RLE, PROBABILITIES = MASKS = "rle", "probabilities"


def describe_model(predictor: Predictor, limits: Limits) -> bytes:
    """Names, canvases and scores of a model, and what the server accepts."""
    params = predictor.params
    has_masks, has_maskiou = params.model.include_mask, params.model.include_maskiou
    scores = {"box_score": True, "mask_iou": has_maskiou, "mask_score": has_masks}
    return _encode(
        {
            "system": params.model.system,
            "names": list(predictor.names.values()),
            "canvases": list(params.data.canvases),
            "scores": [score for score, is_given in scores.items() if is_given],
            "masks": has_masks,
            "exif": params.data.exif,
            "limits": {"upload_bytes": limits.upload_bytes, "pixels": limits.pixels},
        }
    )


def describe_detections(found: Detections, masks: Collection[str]) -> bytes:
    """The size of a picture and the detections in it, best first.

    Each detection is an entry of COCO results without its `image_id`, and has the class's `name`
    and its `box`, y1, x1, y2, x2 in pixels as in `Detections`: unlike `bbox` it can extend beyond
    the picture.

    Args:
        found: the detections.
        masks: "rle" for `segmentation`, "probabilities" for `probabilities` [M, M] over `box`.
    """
    detections = []
    for index, entry in enumerate(found.to_coco()):
        del entry["image_id"]
        if RLE not in masks:
            entry.pop("segmentation", None)
        box = [round(float(side), 3) for side in found.boxes[index]]
        entry = {"name": found.names[index], "box": box, **entry}
        if PROBABILITIES in masks and found.probabilities is not None:
            entry["probabilities"] = np.round(
                found.probabilities[index].astype(np.float64), 4
            ).tolist()
        detections.append(entry)
    size = {"height": found.height, "width": found.width}
    return _encode({"image": size, "detections": detections})


def _encode(content: dict) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
