"""Mask head: a 28×28 mask of each positive RoI (He et al., Mask R-CNN, ICCV 2017, section 3).

Axes: N RoIs of all images, K classes with the background, M side of a mask, C channels.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from model.layers import OUTPUT_DTYPE, Conv, ConvNorm, ConvTranspose, LayerList, interleave, normal
from model.losses import global_sum
from model.scopes import in_scope

NUM_CONVS = 4
# A bin of a whole number of cells has as many samples, whichever way its side was rounded.
COUNT_SLACK = 1e-5
# A RoI that is its object's box halves many cells of the box's mask exactly. Rounding differs
# between eager execution, graphs and XLA and would decide them: so samples lie on a grid, and what
# is less than a half by rounding alone is a half.
SNAP = 2.0**-13
HALF = 0.5 - 1e-6


class MaskHead(keras.layers.Layer):
    """Four 3×3 convolutions, a 2×2 deconvolution, and one 1×1 filter for each class.

    Args:
        rng: source of the initial weights.
        channels: C.
        num_classes: K.
        norm: normalisation after each 3×3 convolution, or "none".
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        num_classes: int,
        *,
        norm: str = "none",
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"norm": norm, "dtype": dtype}
        self.convs = LayerList(
            [ConvNorm(rng, channels, channels, 3, **kwargs) for _ in range(NUM_CONVS)]
        )
        self.deconv = ConvTranspose(rng, channels, channels, dtype=dtype)
        self.logits = Conv(
            rng, channels, num_classes, 1, kernel_init=normal(0.001), dtype=OUTPUT_DTYPE
        )
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
        logits = tf.matmul(tf.cast(x, OUTPUT_DTYPE), filters[:, :, None])[:, :, 0]
        return interleave(logits + bias[:, None], height, width)


def ends_in_cells(
    boxes: tf.Tensor, windows: tf.Tensor, cells: int, axis: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where boxes begin and end on arrays of `cells` cells that cover windows, along one axis.

    Args:
        boxes: float32 [N, 4] in pixels.
        windows: float32 [N, 4] in pixels.
        cells: of the arrays along the axis; cell j covers [j, j + 1).
        axis: 0 for rows, 1 for columns.

    Returns:
        Two float32 [N], in cells. Where a cell is a pixel they are exact.
    """
    low, high = windows[:, axis], windows[:, axis + 2]
    scale = cells / tf.maximum(high - low, 1e-6)
    return (boxes[:, axis] - low) * scale, (boxes[:, axis + 2] - low) * scale


def sample_weights(
    start: tf.Tensor,
    stop: tf.Tensor,
    bins: int,
    cells: int,
    shift: float,
    snapped: tf.Tensor | None = None,
) -> tf.Tensor:
    """What RoIAlign takes of each cell of a row for each bin of an interval, along one axis.

    A bin averages ⌈side / bins⌉ linear interpolations between the centres of the cells, or
    2 ⌈cells / bins⌉ if that is less: an interval that half overlaps the row is no longer than
    twice the row. A sample within half a cell of the row's end takes the value of the last cell,
    and one outside the row counts 0.

    Args:
        start: float32 [N], where the interval begins, in cells; cell j covers [j, j + 1).
        stop: float32 [N], where it ends.
        bins: equal parts the interval is cut into.
        cells: cells of the row.
        shift: where RoIAlign believes the centre of cell 0 to be.
        snapped: bool [N], intervals whose samples move to the nearest multiple of `SNAP` cells.

    Returns:
        float32 [N, bins, cells]; the weights of a bin within the row add up to 1.
    """
    most = 2 * -(-cells // bins)
    first = start - shift
    # The difference of the moved ends, as in the references, whose counts are to be met.
    step = (stop - shift - first) / bins
    count = tf.clip_by_value(tf.math.ceil(step - COUNT_SLACK), 1.0, float(most))
    bin_starts = first[:, None] + tf.range(bins, dtype=tf.float32) * step[:, None]
    weights = tf.zeros([tf.shape(start)[0], bins, cells])
    for sample in range(most):
        position = bin_starts + ((sample + 0.5) / count * step)[:, None]
        if snapped is not None:
            nearest = tf.round(position / SNAP) * SNAP
            position = tf.where(snapped[:, None], nearest, position)
        inside = (position >= -shift) & (position <= cells - shift) & (sample < count)[:, None]
        position = tf.clip_by_value(position, 0.0, cells - 1.0)[..., None]
        share = tf.maximum(1.0 - tf.abs(position - tf.range(cells, dtype=tf.float32)), 0.0)
        weights += tf.where(inside, 1.0 / count[:, None], 0.0)[..., None] * share
    return weights


@in_scope("mask_targets")
def mask_targets(
    gt_masks: tf.Tensor,
    gt_windows: tf.Tensor,
    rois: tf.Tensor,
    mask_size: int,
    rule: str = "bitmap",
) -> tf.Tensor:
    """The part of each ground-truth mask that lies in its RoI, on the RoI's grid.

    RoIAlign of the mask's array with as many samples as a bin has cells: the references' rules,
    which they apply to the bitmap of the image. An array that covers the object's box has finer
    or coarser cells than pixels, and beyond it there is nothing of the object.

    Args:
        gt_masks: [N, M', M''], 0 or 1.
        gt_windows: float32 [N, 4], what the masks' arrays cover: the objects' boxes or the image.
        rois: float32 [N, 4] within the image, no longer than twice their window.
        mask_size: M, cells of the target along a side.
        rule: "bitmap": 1 where the average is at least one half (Detectron2, mmdetection);
            "soft": the average itself, from cells that are taken to lie half a cell further up
            and left, and RoIs of at least one cell (torchvision).

    Returns:
        float32 [N, M, M] in 0..1, without gradient.
    """
    shift = 0.5 if rule == "bitmap" else 0.0
    weights = []
    for axis, cells in enumerate(gt_masks.shape[1:3]):
        start, stop = ends_in_cells(rois, gt_windows, cells, axis)
        if rule == "soft":
            stop = tf.maximum(stop, start + 1.0)
        # Where cells are pixels, nothing is rounded and the references' samples are to be met.
        snapped = gt_windows[:, axis + 2] - gt_windows[:, axis] != cells
        weights.append(sample_weights(start, stop, mask_size, cells, shift, snapped))
    rows, columns = weights
    masks = tf.cast(gt_masks, tf.float32)
    average = tf.matmul(tf.matmul(rows, masks), columns, transpose_b=True)
    if rule == "bitmap":
        average = tf.cast(average >= HALF, tf.float32)
    return tf.stop_gradient(average)


@in_scope("losses")
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
