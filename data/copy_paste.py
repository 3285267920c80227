"""Pastes objects of a second image onto a first: Ghiasi et al., Simple Copy-Paste (CVPR 2021).

Each object of the second image is pasted with probability 1/2 (the paper: a random subset). Only
the pixels of its mask are copied, with hard edges, which the paper found as good as blurred ones.
Crowds of the second image are not pasted; those of the first remain regions to ignore.

Objects below lose the pixels that are covered:
- A mask is stored as cells over its box. A cell is visible if it belongs to the object and the
  canvas pixel under its centre is not covered.
- A side of the box moves inwards to the outermost visible cell, but only if covering changed which
  cell that is, because boxes may be wider than their masks. So it is exact to a cell, 1/M of the
  box's side.
- The mask is resampled to the smaller box, and covering is evaluated again at the centres of the
  new cells. So the edge of the covering object is exact to the pixel, and the object's own outline
  to a cell of the former box.
- The area shrinks by the share of cells that are visible.
- An object is dropped if less than a tenth of its cells is visible, or its box is thinner than a
  pixel.

Axes: n ground truths, k pasted ones, M mask side, H W canvas.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from data.masks import sample_pixels
from data.scenes import MIN_SIDE, Scene, Tensors

PASTED_SHARE = 0.5
LEAST_VISIBLE_SHARE = 0.1
# Gray that fills the canvas around an image once something is pasted there.
GRAY = 128


def copy_paste(scene: Scene, second: Callable[[], Scene], seed: tf.Tensor) -> Scene:
    """Pastes a random half of a second image's objects.

    Args:
        scene: the first image, with masks.
        second: returns the second image, on the same canvas.
        seed: int32 [2].

    Returns:
        Scene with the remaining ground truths of the first image, followed by those pasted. Its
        valid area is enlarged to contain the latter.
    """
    second = second()
    count = tf.shape(second.truths["gt_boxes"])[0]
    draws = tf.random.stateless_uniform([count], seed, alg="philox")
    chosen = tf.where(draws < PASTED_SHARE)[:, 0]
    pasted = {name: tf.gather(values, chosen) for name, values in second.truths.items()}
    cover = second.draw_masks(chosen)
    truths = occlude(scene.truths, cover)
    # The row of zeros makes the maximum exist even if nothing is pasted.
    corner = tf.reduce_max(tf.pad(pasted["gt_boxes"][:, 2:], [[1, 0], [0, 0]]), axis=0)
    valid = tf.maximum(scene.image_info[:2], tf.math.ceil(corner))
    # Copying only the covered pixels is many times faster than selecting over all of them.
    pixels = tf.where(cover)
    image = tf.tensor_scatter_nd_update(
        _surround(scene, valid), pixels, tf.gather_nd(second.image, pixels)
    )
    return scene._replace(
        image=image,
        image_info=tf.concat([valid, scene.image_info[2:]], axis=0),
        truths={name: tf.concat([truths[name], pasted[name]], axis=0) for name in truths},
    )


def occlude(truths: Tensors, cover: tf.Tensor) -> Tensors:
    """Returns the visible remainder of ground truths that are partly covered.

    Args:
        truths: gt_boxes float32 [n, 4], gt_masks uint8 [n, M, M], gt_areas float32 [n], and others
            with the same first axis.
        cover: bool [H, W], the canvas pixels that are covered.

    Returns:
        The same keys, for the ground truths that remain.
    """
    boxes, masks = truths["gt_boxes"], truths["gt_masks"]
    visible = _uncovered(masks, boxes, cover)
    before, after = (
        tf.reduce_sum(tf.cast(cells, tf.float32), [1, 2]) for cells in (masks, visible)
    )
    share = tf.where(before > 0.0, tf.math.divide_no_nan(after, before), 1.0)
    inner = _shrunken_sides(masks, visible)
    size = masks.shape[1]
    corners, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    smaller = tf.tile(corners, [1, 2]) + inner / size * tf.tile(sides, [1, 2])
    rows, columns = _cells(inner, size, tf.constant([size, size], tf.int64))
    masks = tf.gather(tf.gather(masks, rows, batch_dims=1), columns, axis=2, batch_dims=1)
    left = truths | {
        "gt_boxes": smaller,
        "gt_masks": _uncovered(masks, smaller, cover),
        "gt_areas": truths["gt_areas"] * share,
    }
    kept = (share >= LEAST_VISIBLE_SHARE) & tf.reduce_all(
        smaller[:, 2:] - smaller[:, :2] >= MIN_SIDE, axis=1
    )
    return {name: tf.boolean_mask(values, kept) for name, values in left.items()}


def _cells(boxes: tf.Tensor, size: int, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds rows and columns under the cells' centres: float32 [n, 4] -> two int64 [n, M]."""
    return (
        sample_pixels(boxes[:, 0], boxes[:, 2], size, lengths[0]),
        sample_pixels(boxes[:, 1], boxes[:, 3], size, lengths[1]),
    )


def _uncovered(masks: tf.Tensor, boxes: tf.Tensor, cover: tf.Tensor) -> tf.Tensor:
    """Returns the masks' cells that are not covered: uint8 [n, M, M]."""
    lengths = tf.shape(cover, tf.int64)
    rows, columns = _cells(boxes, masks.shape[1], lengths)
    pixels = rows[:, :, None] * lengths[1] + columns[:, None, :]
    covered = tf.gather(tf.reshape(cover, [-1]), pixels)
    return tf.where(covered, tf.zeros([], tf.uint8), masks)


def _shrunken_sides(masks: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
    """Sides of the box around the visible cells, in cells of the former box: float32 [n, 4]."""
    size = masks.shape[1]

    def extents(cells: tf.Tensor) -> tf.Tensor:
        rows, columns = tf.reduce_max(cells, axis=2), tf.reduce_max(cells, axis=1)
        first = [tf.argmax(line, axis=1) for line in (rows, columns)]
        behind = [size - tf.argmax(line[:, ::-1], axis=1) for line in (rows, columns)]
        return tf.cast(tf.stack(first + behind, axis=1), tf.float32)

    before, after = extents(masks), extents(visible)
    return tf.where(after == before, [0.0, 0.0, float(size), float(size)], after)


def _surround(scene: Scene, valid: tf.Tensor) -> tf.Tensor:
    """Enlarges the valid area of an image and fills what is added with gray."""
    canvas = tf.shape(scene.image)
    # Padding rows of 3 W bytes is faster than padding pixels of 3 bytes.
    canvas_size, grown, before = (
        tf.cast(size, tf.int32) * [1, 3] for size in (canvas[:2], valid, scene.image_info[:2])
    )
    black = tf.zeros(before, tf.uint8)
    added = tf.pad(black, _below_and_right(grown - before), constant_values=GRAY)
    added = tf.pad(added, _below_and_right(canvas_size - grown))
    return scene.image + tf.reshape(added, canvas)


def _below_and_right(missing: tf.Tensor) -> tf.Tensor:
    """Paddings for `tf.pad` that add rows below and columns to the right: int32 [2] -> [2, 2]."""
    return tf.stack([tf.zeros_like(missing), missing], axis=1)
