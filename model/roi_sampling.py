"""Samples the RoIs that the heads are trained on (Girshick, Fast R-CNN, section 2.3).

Axes: B images, P proposals, G ground truths, R sampled RoIs.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from data import boxes as box_ops
from model.proposals import Proposals
from model.scopes import in_scope


class SampledRoIs(NamedTuple):
    """RoIs of a training step; an image's positives come before its negatives."""

    boxes: tf.Tensor  # float32 [B, R, 4]
    classes: tf.Tensor  # int32 [B, R], 0 = background
    matches: tf.Tensor  # int32 [B, R], index into G of the box with the largest overlap
    valid: tf.Tensor  # bool [B, R]

    @property
    def positive(self) -> tf.Tensor:
        """Whether each slot holds a positive RoI: bool [B, R]."""
        return self.valid & (self.classes > 0)


@in_scope("roi_sampling")
def sample_rois(
    proposals: Proposals,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    seeds: tf.Tensor,
    *,
    num_rois: int,
    positive_fraction: float,
    positive_iou: float,
) -> SampledRoIs:
    """Draws RoIs at random from the proposals and the ground-truth boxes themselves.

    Args:
        proposals: the RPN's.
        gt_boxes: float32 [B, G, 4].
        gt_classes: int32 [B, G], 0 = padding.
        seeds: int32 [B, 2], one per image, so that the draw does not depend on the number of
            replicas.
        num_rois: R.
        positive_fraction: at most this fraction of R is positive.
        positive_iou: minimum IoU of a positive RoI with some ground truth; all others are negative.

    Returns:
        `SampledRoIs`, without gradient.
    """
    candidates = tf.concat([proposals.boxes, gt_boxes], axis=1)
    usable = tf.concat([proposals.valid, gt_classes > 0], axis=1)
    matches, positive = _match(candidates, gt_boxes, gt_classes, positive_iou)
    positive = usable & positive

    priority = tf.stack(
        [
            draw_uniform(seed, candidates.shape[1])
            for seed in tf.unstack(seeds, num=gt_boxes.shape[0])
        ]
    )
    most = min(int(num_rois * positive_fraction), candidates.shape[1])
    chosen = positive & _among_the_first(tf.where(positive, priority, -1.0), most)
    rank = tf.where(chosen, 1.0 + priority, tf.where(usable & ~positive, priority, -1.0))
    rank, order = tf.math.top_k(rank, min(num_rois, candidates.shape[1]))
    classes = tf.gather(gt_classes, matches, batch_dims=1)
    classes = tf.where(chosen, classes, 0)
    return SampledRoIs(
        boxes=tf.gather(candidates, order, batch_dims=1),
        classes=tf.gather(classes, order, batch_dims=1),
        matches=tf.gather(matches, order, batch_dims=1),
        valid=rank >= 0.0,
    )


@in_scope("roi_sampling")
def label_rois(
    boxes: tf.Tensor,
    valid: tf.Tensor,
    gt_boxes: tf.Tensor,
    gt_classes: tf.Tensor,
    positive_iou: float,
) -> SampledRoIs:
    """Labels given RoIs, without drawing any; those without area are empty slots.

    Args:
        boxes: float32 [B, R, 4].
        valid: bool [B, R].
        gt_boxes, gt_classes, positive_iou: as for `sample_rois`.

    Returns:
        `SampledRoIs` in the order of `boxes`.
    """
    matches, positive = _match(boxes, gt_boxes, gt_classes, positive_iou)
    classes = tf.where(positive, tf.gather(gt_classes, matches, batch_dims=1), 0)
    return SampledRoIs(boxes, classes, matches, valid & (box_ops.area(boxes) > 0))


def _match(
    boxes: tf.Tensor, gt_boxes: tf.Tensor, gt_classes: tf.Tensor, positive_iou: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the ground truth that each box overlaps most, and whether their IoU is enough."""
    iou = box_ops.pairwise_iou(boxes, gt_boxes)
    iou = tf.where((gt_classes > 0)[:, None, :], iou, -1.0)
    matches = tf.argmax(iou, axis=-1, output_type=tf.int32)
    return matches, tf.reduce_max(iou, axis=-1) >= positive_iou


def draw_uniform(seed: tf.Tensor, count: int) -> tf.Tensor:
    """Draws float32 [count] in [0, 1) from the int32 [2] seed alone.

    From bits, since XLA draws the same bits but other floats.
    """
    bits = tf.random.stateless_uniform([count], seed, None, None, tf.uint32, alg="philox")
    return tf.cast(tf.bitwise.right_shift(bits, 9), tf.float32) * 2.0**-23


def _among_the_first(values: tf.Tensor, count: int) -> tf.Tensor:
    """Whether each of [B, N] is among its row's `count` largest values, which must be distinct."""
    if count == 0:
        return tf.zeros_like(values, tf.bool)
    smallest = tf.math.top_k(values, count).values[:, -1:]
    return values >= smallest
