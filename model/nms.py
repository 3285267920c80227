"""Non-maximum suppression, by the op that suits where the graph will run.

Axes: B images, N boxes, K foreground classes, D survivors.

`CombinedNonMaxSuppression` is the fastest on CPU and GPU but has no XLA kernel;
`non_max_suppression_padded` compiles. Both keep the box with the higher score and suppress what
overlaps it by more than the threshold. Of equal scores the one with the lower index is the higher,
as in torchvision. A box without area overlaps nothing, so it stays.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.scopes import in_scope


class Suppressed(NamedTuple):
    """Survivors in order of falling score; empty slots at the end hold zeros."""

    boxes: tf.Tensor  # float32 [B, D, 4]
    scores: tf.Tensor  # float32 [B, D]
    classes: tf.Tensor  # int32 [B, D], index into K
    valid: tf.Tensor  # bool [B, D]


@in_scope("nms")
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
        scores: float32 [B, N, K], any numbers.
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
    ranks, ranked_scores = _rank(scores, score_threshold)
    kept, kept_ranks, classes, count = tf.image.combined_non_max_suppression(
        boxes,
        ranks,
        max_output_size_per_class=max_output,
        max_total_size=max_output,
        iou_threshold=iou_threshold,
        score_threshold=0.0,
        clip_boxes=False,
    )
    kept_scores = tf.gather(ranked_scores, tf.cast(kept_ranks, tf.int32))
    valid = tf.range(max_output)[None] < count[:, None]
    return Suppressed(kept, kept_scores, tf.cast(classes, tf.int32), valid)


def _rank(scores: tf.Tensor, score_threshold: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Whole numbers in the order of the scores of the whole batch, without ties.

    CombinedNonMaxSuppression takes equal scores in any order, and what scores less than -1 for
    padding.

    Args:
        scores: float32 [B, N, K].
        score_threshold: scores not above this rank 0.

    Returns:
        The ranks, float32 [B, N, K], 0 to R (exact up to 2**24), and the score of each rank,
        float32 [R + 1].
    """
    above = tf.where(scores > score_threshold)
    count = tf.shape(above)[0]
    # Of equal values top_k takes the first first.
    falling, order = tf.math.top_k(tf.gather_nd(scores, above), count)
    numbers = tf.cast(tf.range(count, 0, -1), tf.float32)
    ranks = tf.scatter_nd(tf.gather(above, order), numbers, tf.shape(scores, tf.int64))
    return ranks, tf.reverse(tf.concat([falling, [0.0]], 0), [0])


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
    # The op takes scores of 0 for padding, and is to bear negative ones.
    ranks = tf.where(scores > score_threshold, tf.range(scores.shape[1], 0.0, -1.0), 0.0)
    indices, count = tf.image.non_max_suppression_padded(
        moved,
        ranks,
        max_output,
        # The op suppresses at the threshold too.
        iou_threshold=float(np.nextafter(np.float32(iou_threshold), np.float32(2.0))),
        score_threshold=0.0,
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
