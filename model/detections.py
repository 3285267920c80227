"""From box head outputs to detections (Faster R-CNN, section 3.3; Mask Scoring R-CNN, 3.4).

Axes: B images, P proposals, K classes with the background, D detections.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from data import boxes as box_ops
from model.box_head import DELTA_WEIGHTS, BoxOutputs
from model.nms import suppress
from model.proposals import Proposals
from model.scopes import in_scope


class BoxDetections(NamedTuple):
    """Boxes in order of falling class score; empty slots at the end hold zeros."""

    boxes: tf.Tensor  # float32 [B, D, 4], pixels of the network's input
    classes: tf.Tensor  # int32 [B, D], 0 = empty slot
    scores: tf.Tensor  # float32 [B, D]
    valid: tf.Tensor  # bool [B, D]


@in_scope("detections")
def detect_boxes(
    outputs: BoxOutputs,
    proposals: Proposals,
    image_info: tf.Tensor,
    *,
    score_threshold: float,
    nms_iou: float,
    max_detections: int,
    static: bool,
    clip_below: bool = False,
) -> BoxDetections:
    """Decodes every class's box, suppresses within each class, and keeps the best over all.

    Args:
        outputs: of the box head on the proposals, N = B P.
        proposals: what was classified.
        image_info: float32 [B, 5]; its first two columns are the height and width to clip to.
        score_threshold: class probability that a detection has to exceed.
        nms_iou: overlap above which the worse of two detections of a class goes.
        max_detections: D.
        static: see `suppress`.
        clip_below: see `data.boxes.decode`.

    Returns:
        `BoxDetections`.
    """
    batch, count = proposals.valid.shape
    scores = tf.reshape(tf.nn.softmax(outputs.class_logits), [batch, count, -1])[:, :, 1:]
    scores = tf.where(proposals.valid[..., None], scores, 0.0)
    deltas = tf.reshape(outputs.box_deltas, [batch, count, -1, 4])[:, :, 1:]
    boxes = box_ops.decode(
        deltas, proposals.boxes[:, :, None, :], DELTA_WEIGHTS, clip_below=clip_below
    )
    boxes = box_ops.clip(boxes, image_info[:, None, None, 0], image_info[:, None, None, 1])
    # What clipping leaves without area is no detection.
    scores = tf.where(box_ops.area(boxes) > 0, scores, 0.0)
    kept = suppress(
        boxes,
        scores,
        iou_threshold=nms_iou,
        score_threshold=score_threshold,
        max_output=max_detections,
        static=static,
    )
    classes = tf.where(kept.valid, kept.classes + 1, 0)
    return BoxDetections(kept.boxes, classes, kept.scores, kept.valid)


def mask_scores(box_scores: tf.Tensor, mask_ious: tf.Tensor, rescore: bool) -> tf.Tensor:
    """Mask score = class score × predicted mask IoU (Mask Scoring R-CNN, section 3.2).

    Args:
        box_scores: float32 [B, D].
        mask_ious: float32 [B, D] in 0..1.
        rescore: off leaves the class score, as Mask R-CNN ranks its masks.

    Returns:
        float32 [B, D].
    """
    return box_scores * mask_ious if rescore else box_scores
