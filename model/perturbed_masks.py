"""Ground-truth masks spoilt at random: examples of bad outlines for the MaskIoU head.

A detector's own masks on its training images are nearly all good, so that a head trained on them
alone cannot judge the masks of people and of other programs. These masks are moved, scaled, grown,
shrunk, bent, cut and merged with a neighbour's, each by a random amount, often by little.

Axes: B images, G ground truths, N objects of all images, S side of the arrays worked on, M side of
a mask.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from model.mask_head import matched_masks, sample_masks
from model.roi_sampling import draw_uniform
from model.scopes import in_scope
from model.slots import choose_slots

# Distinguishes the draws from those of the RoIs and of points, which have the same seeds.
_SEED = 2
# Working arrays cover the object's box and a quarter of it more on each side.
_SIDE, _MARGIN = 56, 0.25
_MERGED, _CUT = 0.2, 0.25  # shares of the masks
_LARGEST_SHIFT, _LARGEST_LOG_SCALE = 0.5, 0.4  # of the boxes' sides
_BLUR = 7  # cells
_BEND_GRID = 5
_NUM_AMOUNTS = 11
NUMBERS = _NUM_AMOUNTS + _BEND_GRID**2  # random numbers that each mask is made from


class PerturbedMasks(NamedTuple):
    """Masks as somebody might have drawn them."""

    boxes: tf.Tensor  # float32 [N, 4], tight around the masks, within the image
    masks: tf.Tensor  # float32 [N, M, M], the covered share of each cell
    valid: tf.Tensor  # bool [N], whether anything is left of the mask


class PerturbedObjects(NamedTuple):
    """Spoilt masks of some objects of a batch."""

    given: PerturbedMasks
    classes: tf.Tensor  # int32 [N]
    matches: tf.Tensor  # int32 [N, 2], image and ground truth
    valid: tf.Tensor  # bool [N]


def perturb_objects(
    labels: dict[str, tf.Tensor],
    image_sizes: tf.Tensor,
    most: int,
    mask_size: int,
    static: bool,
) -> PerturbedObjects:
    """Spoils the masks of objects drawn at random from each image.

    Args:
        labels: as for `model.detector.Detector.compute_losses`.
        image_sizes: float32 [B, 2], valid height and width.
        most: maximum number of objects an image.
        mask_size: M.
        static: see `model.slots.choose_slots`.
    """
    gt_boxes, gt_classes = labels["gt_boxes"], labels["gt_classes"]
    batch, objects = gt_classes.shape
    drawn = [
        draw_uniform(tf.bitwise.bitwise_xor(seed, _SEED), objects * (1 + NUMBERS))
        for seed in tf.unstack(labels["sample_seeds"], num=batch)
    ]
    numbers = tf.reshape(tf.stack(drawn), [batch, objects, 1 + NUMBERS])
    order = tf.where(gt_classes > 0, numbers[..., 0], -1.0)
    order = tf.math.top_k(order, min(most, objects)).indices
    classes = tf.gather(gt_classes, order, batch_dims=1)
    slots = choose_slots(classes > 0, order.shape[1], static)
    matches = tf.stack([slots.image, slots.take(order)], -1)
    nearest = tf.gather_nd(find_neighbours(gt_boxes, gt_classes), matches)
    given = perturb_masks(
        tf.gather_nd(gt_boxes, matches),
        matched_masks(labels, matches),
        matched_masks(labels, tf.stack([slots.image, nearest], -1)),
        tf.gather_nd(numbers[..., 1:], matches),
        tf.gather(image_sizes, slots.image),
        mask_size,
    )
    return PerturbedObjects(given, slots.take(classes), matches, given.valid & slots.valid)


@in_scope("perturb_masks")
def perturb_masks(
    boxes: tf.Tensor,
    masks: tuple[tf.Tensor, tf.Tensor],
    neighbours: tuple[tf.Tensor, tf.Tensor],
    numbers: tf.Tensor,
    image_sizes: tf.Tensor,
    mask_size: int,
) -> PerturbedMasks:
    """Spoils masks.

    Args:
        boxes: float32 [N, 4], the objects' boxes in pixels.
        masks: uint8 [N, M', M''], 0 or 1; and float32 [N, 4], the areas that their arrays cover.
        neighbours: the same of other objects, each of which may be merged with the mask.
        numbers: float32 [N, NUMBERS], uniform in 0..1.
        image_sizes: float32 [N, 2], height and width of the objects' images.
        mask_size: M.

    Returns:
        `PerturbedMasks`, without gradient.
    """
    amounts = tf.unstack(numbers[:, :_NUM_AMOUNTS], axis=1)
    strength, drift, merge, cut, angle, offset, grow, *moves = amounts
    area = _enlarge(boxes, _MARGIN)
    shape = sample_masks(*masks, area, _SIDE)
    merged = tf.maximum(shape, sample_masks(*neighbours, area, _SIDE))
    shape = tf.where((merge < _MERGED)[:, None, None], merged, shape)
    bend = _upsample(numbers[:, _NUM_AMOUNTS:])
    level = 0.5 + strength[:, None, None] * (0.5 * (grow[:, None, None] - 0.5) + bend - 0.5)
    level = tf.clip_by_value(level, 0.1, 0.9)
    shape = tf.cast(_blur(shape, strength) >= level, tf.float32)
    kept = tf.where((cut < _CUT)[:, None, None], _half_plane(angle, offset), 1.0)
    shape *= kept
    area = _move(area, drift[:, None] * (2 * tf.stack(moves, axis=1) - 1))
    tight = _tight_boxes(shape, area, image_sizes)
    valid = tf.reduce_all(tight[:, 2:] - tight[:, :2] >= 1.0, axis=1)
    tight = tf.stop_gradient(tf.where(valid[:, None], tight, 0.0))
    return PerturbedMasks(tight, sample_masks(shape, area, tight, mask_size), valid)


def find_neighbours(gt_boxes: tf.Tensor, gt_classes: tf.Tensor) -> tf.Tensor:
    """Finds the ground truth whose centre is nearest to each: int32 [B, G], itself if it is alone.

    Args:
        gt_boxes: float32 [B, G, 4].
        gt_classes: int32 [B, G], 0 = padding.
    """
    centres = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    squares = tf.reduce_sum(tf.square(centres[:, :, None] - centres[:, None]), axis=-1)
    itself = tf.eye(gt_boxes.shape[1], dtype=tf.bool)[None]
    absent = (gt_classes == 0)[:, None, :]
    far = tf.where(itself, 1e18, tf.where(absent, 2e18, squares))
    return tf.argmin(far, axis=-1, output_type=tf.int32)


def _enlarge(boxes: tf.Tensor, share: float) -> tf.Tensor:
    margins = share * (boxes[:, 2:] - boxes[:, :2])
    return boxes + tf.concat([-margins, margins], axis=1)


def _upsample(values: tf.Tensor) -> tf.Tensor:
    """Interpolates [N, grid²] linearly to [N, S, S]."""
    places = np.linspace(0, _BEND_GRID - 1, _SIDE)[:, None]
    weights = np.maximum(1 - np.abs(places - np.arange(_BEND_GRID)), 0).astype(np.float32)
    grid = tf.reshape(values, [-1, _BEND_GRID, _BEND_GRID])
    return tf.einsum("ri,nij,cj->nrc", weights, grid, weights)


def _blur(shape: tf.Tensor, strength: tf.Tensor) -> tf.Tensor:
    """Averages over neighbouring cells, the more of it the stronger."""
    blurred = shape[..., None]
    for _ in range(2):
        blurred = tf.nn.avg_pool2d(blurred, _BLUR, 1, "SAME")
    share = strength[:, None, None]
    return (1 - share) * shape + share * blurred[..., 0]


def _half_plane(angle: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """1 on one side of a line through the middle half of the array: [N, S, S]."""
    centres = ((np.arange(_SIDE) + 0.5) / _SIDE - 0.5).astype(np.float32)
    angle = 2 * np.pi * angle[:, None, None]
    distance = tf.cos(angle) * centres[None, :, None] + tf.sin(angle) * centres[None, None]
    return tf.cast(distance <= 0.35 * offset[:, None, None], tf.float32)


def _move(areas: tf.Tensor, moves: tf.Tensor) -> tf.Tensor:
    """Shifts and scales enlarged boxes by [N, 4] numbers in -1..1."""
    sides = areas[:, 2:] - areas[:, :2]
    shifts = _LARGEST_SHIFT * moves[:, :2] * sides / (1 + 2 * _MARGIN)
    centres = areas[:, :2] + sides / 2 + shifts
    sides *= tf.exp(_LARGEST_LOG_SCALE * moves[:, 2:])
    return tf.concat([centres - sides / 2, centres + sides / 2], axis=1)


def _tight_boxes(shape: tf.Tensor, areas: tf.Tensor, image_sizes: tf.Tensor) -> tf.Tensor:
    """The boxes around the cells of [N, S, S] that are 1, clipped to the images."""
    ends = []
    for axis in (1, 2):
        covered = tf.reduce_max(shape, axis=3 - axis) > 0
        start = tf.cast(tf.argmax(covered, axis=1), tf.float32)
        stop = _SIDE - tf.cast(tf.argmax(covered[:, ::-1], axis=1), tf.float32)
        low, high = areas[:, axis - 1], areas[:, axis + 1]
        step = (high - low) / _SIDE
        limit = image_sizes[:, axis - 1]
        empty = ~tf.reduce_any(covered, axis=1)
        stop = tf.where(empty, start, stop)
        ends.append([tf.clip_by_value(low + end * step, 0.0, limit) for end in (start, stop)])
    (y1, y2), (x1, x2) = ends
    return tf.stack([y1, x1, y2, x2], axis=1)
