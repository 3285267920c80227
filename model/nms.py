"""Non-maximum suppression, by the op that suits where the graph will run.

Axes: B images, N boxes, K foreground classes, D survivors.

`CombinedNonMaxSuppression` is the fastest on CPU and GPU but has no XLA kernel;
`non_max_suppression_padded` compiles. Both keep the box with the higher score and suppress what
overlaps it by more than the threshold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Suppressed(NamedTuple):
    """Survivors in order of falling score; empty slots at the end hold zeros."""

    boxes: tf.Tensor  # float32 [B, D, 4]
    scores: tf.Tensor  # float32 [B, D]
    classes: tf.Tensor  # int32 [B, D], index into K
    valid: tf.Tensor  # bool [B, D]


def suppress(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    iou_threshold: float,
    score_threshold: float,
    max_output: int,
    static: bool,
) -> Suppressed:
    """Suppresses within each class and keeps the best over all classes.

    Args:
        boxes: float32 [B, N, Q, 4], Q = K, or 1 where the classes share their boxes.
        scores: float32 [B, N, K], not negative: CombinedNonMaxSuppression takes what scores less
            than -1 for padding.
        iou_threshold: boxes that overlap a better one by more than this go.
        score_threshold: boxes with a score not above this go first.
        max_output: D.
        static: use the op that XLA can compile; it considers the best `8 * max_output` pairs of
            box and class of an image.

    Returns:
        `Suppressed`.
    """
    if static:
        return _suppress_static(
            boxes, scores, iou_threshold, score_threshold, max_output, 8 * max_output
        )
    kept, kept_scores, classes, count = tf.image.combined_non_max_suppression(
        boxes,
        scores,
        max_output_size_per_class=max_output,
        max_total_size=max_output,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        clip_boxes=False,
    )
    valid = tf.range(max_output)[None] < count[:, None]
    return Suppressed(kept, kept_scores, tf.cast(classes, tf.int32), valid)


def _suppress_static(
    boxes, scores, iou_threshold, score_threshold, max_output, max_candidates
) -> Suppressed:
    batch, num_boxes, num_classes = scores.shape
    flat_scores = tf.reshape(scores, [batch, num_boxes * num_classes])
    scores, flat = tf.math.top_k(flat_scores, min(max_candidates, num_boxes * num_classes))
    box_index, classes = flat // num_classes, flat % num_classes
    columns = boxes.shape[2]
    box_index = box_index * columns + (classes if columns > 1 else 0)
    boxes = tf.gather(tf.reshape(boxes, [batch, num_boxes * columns, 4]), box_index, batch_dims=1)
    # Boxes of different classes are moved apart so that they never overlap, and all of them to
    # positive coordinates, because the op takes a box without any for padding.
    span = tf.reduce_max(tf.abs(boxes)) * 2.0 + 1.0
    moved = boxes + tf.cast(classes + 1, tf.float32)[..., None] * span
    indices, count = tf.image.non_max_suppression_padded(
        moved,
        scores,
        max_output,
        # The op suppresses at the threshold too.
        iou_threshold=float(np.nextafter(np.float32(iou_threshold), np.float32(2.0))),
        score_threshold=score_threshold,
        pad_to_max_output_size=True,
        sorted_input=True,
        canonicalized_coordinates=True,
    )
    valid = tf.range(max_output)[None] < count[:, None]

    def take(values: tf.Tensor) -> tf.Tensor:
        taken = tf.gather(values, indices, batch_dims=1)
        keep = valid[..., None] if taken.shape.rank == 3 else valid
        return tf.where(keep, taken, tf.zeros_like(taken))

    return Suppressed(take(boxes), take(scores), take(classes), valid)
