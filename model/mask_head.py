"""Mask head: a 28×28 mask of each positive RoI (He et al., Mask R-CNN, ICCV 2017, section 3).

Axes: N RoIs of all images, K classes with the background, M side of a mask, C channels.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from model.layers import Conv, ConvTranspose, interleave, normal
from model.losses import global_sum

NUM_CONVS = 4


class MaskHead(keras.layers.Layer):
    """Four 3×3 convolutions, a 2×2 deconvolution, and one 1×1 filter for each class."""

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        num_classes: int,
        *,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        self.convs = [Conv(rng, channels, channels, 3, dtype=dtype) for _ in range(NUM_CONVS)]
        self.deconv = ConvTranspose(rng, channels, channels, dtype=dtype)
        self.logits = Conv(rng, channels, num_classes, 1, kernel_init=normal(0.001), dtype=dtype)
        self.built = True

    def call(self, features: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Predicts each RoI's mask for one class.

        Only the filter of that class is applied: the other classes' masks are never looked at.

        Args:
            features: [N, M / 2, M / 2, C].
            classes: int32 [N].

        Returns:
            mask_logits, float32 [N, M, M].
        """
        x = features
        for conv in self.convs:
            x = tf.nn.relu(conv(x))
        height, width = x.shape[1:3]
        x = tf.nn.relu(self.deconv(x))
        filters = tf.gather(tf.transpose(self.logits.kernel[0, 0]), classes)
        bias = tf.gather(tf.convert_to_tensor(self.logits.bias), classes)
        logits = tf.matmul(x, tf.cast(filters, x.dtype)[:, :, None])[:, :, 0]
        return interleave(tf.cast(logits, tf.float32) + bias[:, None], height, width)


def coverage(start: tf.Tensor, stop: tf.Tensor, bins: int, cells: int) -> tf.Tensor:
    """How much of each cell of a row lies in each bin of an interval, along one axis.

    Args:
        start: float32 [N], where the interval begins, in cells.
        stop: float32 [N], where it ends.
        bins: equal parts the interval is cut into.
        cells: cells of the row; cell j covers [j, j + 1).

    Returns:
        float32 [N, bins, cells], lengths of overlap in cells.
    """
    edges = start[:, None] + (stop - start)[:, None] * tf.linspace(0.0, 1.0, bins + 1)[None]
    low, high = edges[:, :-1, None], edges[:, 1:, None]
    cell = tf.range(cells, dtype=tf.float32)
    return tf.maximum(tf.minimum(high, cell + 1.0) - tf.maximum(low, cell), 0.0)


def cover_mask(masks: tf.Tensor, windows: tf.Tensor, boxes: tf.Tensor, bins: int) -> tf.Tensor:
    """Area of each mask within each bin of a grid laid over a box.

    The grid's cells and the mask's cells are rectangles, so the overlap is a product of lengths
    and the areas are two small matrix products, exact for boxes of any size and position.

    Args:
        masks: [N, M, M'], 0 or 1; cells outside the mask's array count 0.
        windows: float32 [N, 4], the box in pixels that the mask's array covers.
        boxes: float32 [N, 4], the box in pixels to lay the grid over.
        bins: cells of the grid along a side.

    Returns:
        float32 [N, bins, bins], areas in cells of the mask's array.
    """
    rows, columns = masks.shape[1], masks.shape[2]
    origin = tf.tile(windows[:, :2], [1, 2])
    side = tf.maximum(windows[:, 2:] - windows[:, :2], 1e-6)
    cells = (boxes - origin) / tf.tile(side, [1, 2]) * [rows, columns, rows, columns]
    over_rows = coverage(cells[:, 0], cells[:, 2], bins, rows)
    over_columns = coverage(cells[:, 1], cells[:, 3], bins, columns)
    return tf.matmul(
        tf.matmul(over_rows, tf.cast(masks, tf.float32)), over_columns, transpose_b=True
    )


def mask_targets(
    gt_masks: tf.Tensor, gt_windows: tf.Tensor, rois: tf.Tensor, mask_size: int
) -> tf.Tensor:
    """The part of each ground-truth mask that lies in its RoI, on the RoI's grid.

    A cell is foreground if the mask covers at least half of it; what RoIAlign estimates with a few
    samples is computed exactly.

    Args:
        gt_masks: [N, M, M], 0 or 1.
        gt_windows: float32 [N, 4], the boxes that the masks' arrays cover.
        rois: float32 [N, 4].
        mask_size: cells of the target along a side.

    Returns:
        float32 [N, mask_size, mask_size], 0 or 1.
    """
    covered = cover_mask(gt_masks, gt_windows, rois, mask_size)
    scale = tf.constant([gt_masks.shape[1], gt_masks.shape[2]], tf.float32)
    window_side = tf.maximum(gt_windows[:, 2:] - gt_windows[:, :2], 1e-6)
    cell = (rois[:, 2:] - rois[:, :2]) / window_side * scale / mask_size
    cell_area = cell[:, 0] * cell[:, 1]
    return tf.stop_gradient(tf.cast(covered >= 0.5 * cell_area[:, None, None], tf.float32))


def mask_loss(mask_logits: tf.Tensor, targets: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy, mean over the pixels of the positive RoIs of all replicas.

    Args:
        mask_logits: float32 [N, M, M] of each RoI's ground-truth class.
        targets: float32 [N, M, M].
        valid: bool [N], slots that hold a positive RoI.

    Returns:
        float32 scalar, 0 when there is no positive RoI.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=mask_logits)
    per_roi = tf.where(valid, tf.reduce_mean(cross_entropy, axis=[1, 2]), 0.0)
    count = global_sum(tf.math.count_nonzero(valid, dtype=tf.int32))
    return tf.reduce_sum(per_roi) / tf.maximum(count, 1.0)
