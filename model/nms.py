"""Non-maximum suppression, by the op that suits the platform of the graph.

Axes: B images, N boxes, K foreground classes, D survivors.

Hard suppression removes boxes that overlap a better one by more than a threshold. Soft suppression
lowers their scores instead, the more the larger the overlap (Bodla et al., Soft-NMS, ICCV 2017), so
that objects in front of each other are not lost.

`CombinedNonMaxSuppression` is the fastest on CPU and GPU but has no XLA kernel. XLA compiles
`non_max_suppression_padded` for one class, and a loop over the survivors for several classes, which
needs no offsets between their boxes; soft suppression always uses that loop. Exported graphs have
no loops: they use `NonMaxSuppressionV4` and `V5`, one op per image, which other runtimes have too.
Among equal scores the lower index comes first, as in torchvision. A box without area overlaps
nothing, so it is kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from model.scopes import in_scope
from model.static import Static

# Score of suppressed boxes; scores of detections are finite.
_GONE = -np.inf


class Suppressed(NamedTuple):
    """Survivors by descending score; empty slots at the end hold zeros."""

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
    static: bool | Static,
    soft_sigma: float = 0.0,
) -> Suppressed:
    """Suppresses within each class and keeps the best over all classes.

    Args:
        boxes: float32 [B, N, Q, 4], Q = K, or 1 if the classes share their boxes.
        scores: float32 [B, N, K], any finite numbers; probabilities for soft suppression.
        iou_threshold: boxes that overlap a better one by more than this are suppressed.
        score_threshold: boxes with a score not above this are dropped, initially or once it has
            been lowered.
        max_output: D.
        static: which operations to use, see `model.static.Static`. The survivors are the same; with
            PORTABLE, overlaps within 1e-4 of the threshold may be decided either way.
        soft_sigma: if above 0, suppression is soft: `iou_threshold` is not used, and a box's score
            is multiplied by exp(-IoU² / soft_sigma) for each better survivor of its class (equation
            4 of the paper). Survivors have their lowered scores.

    Returns:
        `Suppressed`.
    """
    if static == Static.PORTABLE:
        return _suppress_each_image(
            boxes, scores, iou_threshold, score_threshold, max_output, soft_sigma
        )
    if soft_sigma:
        lower = functools.partial(_lower, sigma=soft_sigma, score_threshold=score_threshold)
        return _take_in_turn(boxes, scores, lower, score_threshold, max_output)
    if static and scores.shape[2] > 1:
        remove = functools.partial(_remove, iou_threshold=iou_threshold)
        return _take_in_turn(boxes, scores, remove, score_threshold, max_output)
    if static:
        return _suppress_one_class(boxes, scores, iou_threshold, score_threshold, max_output)
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
    """Replaces scores by integers in the same order over the whole batch, without ties.

    CombinedNonMaxSuppression processes equal scores in any order and treats scores below -1 as
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
    # Among equal values, top_k returns the first one first.
    falling, order = tf.math.top_k(tf.gather_nd(scores, above), count)
    numbers = tf.cast(tf.range(count, 0, -1), tf.float32)
    ranks = tf.scatter_nd(tf.gather(above, order), numbers, tf.shape(scores, tf.int64))
    return ranks, tf.reverse(tf.concat([falling, [0.0]], 0), [0])


def _suppress_one_class(boxes, scores, iou_threshold, score_threshold, max_output) -> Suppressed:
    # Among equal values, top_k returns the first one first.
    scores, order = tf.math.top_k(scores[:, :, 0], scores.shape[1])
    boxes = tf.gather(boxes[:, :, 0], order, batch_dims=1)
    # The op treats a box without positive coordinates as padding,
    moved = boxes + (tf.reduce_max(tf.abs(boxes), axis=[1, 2], keepdims=True) + 1.0)
    # and scores of 0 too, while negative scores have to work.
    ranks = tf.where(scores > score_threshold, tf.range(scores.shape[1], 0.0, -1.0), 0.0)
    indices, count = tf.image.non_max_suppression_padded(
        moved,
        ranks,
        max_output,
        # The op also suppresses at exactly the threshold.
        iou_threshold=float(np.nextafter(np.float32(iou_threshold), np.float32(2.0))),
        score_threshold=0.0,
        pad_to_max_output_size=True,
        sorted_input=True,
        canonicalized_coordinates=True,
    )
    valid = tf.range(max_output)[None] < count[:, None]
    kept = tf.where(valid[..., None], tf.gather(boxes, indices, batch_dims=1), 0.0)
    kept_scores = tf.where(valid, tf.gather(scores, indices, batch_dims=1), 0.0)
    return Suppressed(kept, kept_scores, tf.zeros_like(indices), valid)


def _remove(scores: tf.Tensor, ious: tf.Tensor, iou_threshold: float) -> tf.Tensor:
    return tf.where(ious > iou_threshold, _GONE, scores)


def _lower(scores: tf.Tensor, ious: tf.Tensor, sigma: float, score_threshold: float) -> tf.Tensor:
    lowered = scores * tf.exp(-tf.square(ious) / sigma)
    return tf.where(lowered > score_threshold, lowered, _GONE)


def _take_in_turn(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    suppress_overlaps: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    score_threshold: float,
    max_output: int,
) -> Suppressed:
    """Takes the best remaining box and suppresses those that overlap it in its class, D times.

    Scores never rise, so the boxes taken over all classes are, in order, those that each class
    would have taken by itself, and after D boxes no remaining one can be among the best D. All N K
    boxes are considered until then. Only the rows [N] of one class change each time, so that a
    survivor costs N + K steps.

    Args:
        boxes, scores, score_threshold, max_output: as for `suppress`.
        suppress_overlaps: maps the scores [B, N] of a class and their IoUs [B, N] with the box
            taken to its lowered scores.
    """
    batch = scores.shape[0]
    boxes = tf.transpose(boxes, [0, 2, 1, 3])
    scores = tf.transpose(scores, [0, 2, 1])
    scores = tf.where(scores > score_threshold, scores, _GONE)

    def survivor(number, scores, best, first, kept):
        taken, *left = _take_best(boxes, scores, best, first, suppress_overlaps)
        return number + 1, *left, {name: kept[name].write(number, taken[name]) for name in kept}

    kept = {
        "boxes": tf.TensorArray(boxes.dtype, max_output, element_shape=[batch, 4]),
        "scores": tf.TensorArray(scores.dtype, max_output, element_shape=[batch]),
        "classes": tf.TensorArray(tf.int32, max_output, element_shape=[batch]),
    }
    state = (0, scores, *_first_of_best(scores), kept)
    *_, kept = tf.while_loop(
        lambda number, *_: number < max_output, survivor, state, maximum_iterations=max_output
    )
    kept_scores = tf.transpose(kept["scores"].stack())
    valid = kept_scores > _GONE
    return Suppressed(
        tf.where(valid[..., None], tf.transpose(kept["boxes"].stack(), [1, 0, 2]), 0.0),
        tf.where(valid, kept_scores, 0.0),
        tf.where(valid, tf.transpose(kept["classes"].stack()), 0),
        valid,
    )


def _take_best(boxes, scores, best, first, suppress_overlaps):
    """Takes the best box of each image.

    Args:
        boxes: float32 [B, Q, N, 4].
        scores: float32 [B, K, N].
        best, first: what `_first_of_best` finds in the scores, [B, K].
        suppress_overlaps: as for `_take_in_turn`.

    Returns:
        What was taken: boxes [B, 4], scores [B] and classes [B]; and the last three arguments
        before `suppress_overlaps` for what is left.
    """
    batch, num_classes, num_boxes = scores.shape
    # Among equal scores the first box wins, and among its classes the first.
    place = tf.where(
        best == tf.reduce_max(best, axis=1, keepdims=True),
        first * num_classes + tf.range(num_classes),
        num_boxes * num_classes,
    )
    label = tf.argmin(place, axis=1, output_type=tf.int32)
    row = tf.gather(scores, label, batch_dims=1)
    score = tf.gather(best, label, batch_dims=1)
    column = label if boxes.shape[1] > 1 else tf.zeros_like(label)
    row_boxes = tf.gather(boxes, column, batch_dims=1)
    index = tf.gather(first, label, batch_dims=1)
    box = tf.gather(row_boxes, index, batch_dims=1)
    row = suppress_overlaps(row, box_ops.iou(box[:, None], row_boxes))
    row = tf.where(tf.range(num_boxes) == index[:, None], _GONE, row)
    row_best, row_first = _first_of_best(row)
    changed = tf.stack([tf.range(batch), label], axis=1)
    return (
        {"boxes": box, "scores": score, "classes": label},
        tf.tensor_scatter_nd_update(scores, changed, row),
        tf.tensor_scatter_nd_update(best, changed, row_best),
        tf.tensor_scatter_nd_update(first, changed, row_first),
    )


def _suppress_each_image(
    boxes, scores, iou_threshold, score_threshold, max_output, soft_sigma
) -> Suppressed:
    """One op for each image, whose classes are moved apart so as not to suppress each other."""
    batch, num_boxes, num_classes = scores.shape
    offsets = _tile_offsets(num_classes) * (tf.reduce_max(tf.abs(boxes)) + 1.0)
    boxes = tf.broadcast_to(boxes, [batch, num_boxes, num_classes, 4])
    kept = []
    for image in range(batch):
        candidates = tf.reshape(boxes[image], [-1, 4])
        limits = {
            "boxes": tf.reshape(boxes[image] + offsets, [-1, 4]),
            "scores": tf.reshape(scores[image], [-1]),
            "max_output_size": max_output,
            "score_threshold": score_threshold,
            "pad_to_max_output_size": True,
        }
        if soft_sigma:
            # The op halves the exponent, and suppresses altogether above its threshold.
            index, kept_scores, count = tf.raw_ops.NonMaxSuppressionV5(
                **limits, iou_threshold=1.0, soft_nms_sigma=soft_sigma / 2.0
            )
        else:
            index, count = tf.raw_ops.NonMaxSuppressionV4(**limits, iou_threshold=iou_threshold)
            kept_scores = tf.gather(limits["scores"], tf.maximum(index, 0))
        valid = tf.range(max_output) < count
        # Runtimes pad the indices differently.
        index = tf.where(valid, index, 0)
        kept.append(
            Suppressed(
                tf.where(valid[:, None], tf.gather(candidates, index), 0.0),
                tf.where(valid, kept_scores, 0.0),
                index % num_classes,
                valid,
            )
        )
    return Suppressed(*(tf.stack(values) for values in zip(*kept, strict=True)))


def _tile_offsets(num_classes: int) -> np.ndarray:
    """Where each class is moved to, in sides of the image: float32 [K, 4].

    On a square around the origin they are moved least, so that their boxes lose least precision.
    """
    side = math.ceil(math.sqrt(num_classes))
    row, column = np.divmod(np.arange(num_classes), side)
    return np.float32(2 * (np.stack([row, column, row, column], axis=1) - side // 2))


def _first_of_best(scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the largest of [..., N], and its first position as int32."""
    best = tf.reduce_max(scores, axis=-1)
    count = scores.shape[-1]
    place = tf.where(scores == best[..., None], tf.range(count), count)
    return best, tf.reduce_min(place, axis=-1)
