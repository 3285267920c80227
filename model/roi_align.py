"""RoIAlign over a feature pyramid (He et al., Mask R-CNN, ICCV 2017, section 3).

Axes: B images, N RoIs of all images, L levels P2 … P5, S samples along one side of a RoI,
T lattices, C channels.

Each output bin averages bilinear samples on a regular grid. A sample up to one cell outside the
map takes the value at its border; further outside it counts 0. Two things vary:

- aligned: a RoI's edges are moved by half a cell, because the value of a cell belongs to its centre
  (Detectron2, mmdetection). If not aligned, they are not moved, and a RoI's sides are at least one
  cell (torchvision, maskrcnn-benchmark).
- samples: `sampling_ratio` along each side of a bin or, if it is 0, as many as the bin has cells
  along that side, rounded up, so that the number depends on the RoI and differs between rows and
  columns.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from model.scopes import in_scope

CANONICAL_SIZE = 224.0
CANONICAL_LEVEL = 4
# Tolerance, so that a bin of a whole number of cells has as many samples despite rounding.
COUNT_SLACK = 1e-5
# A RoI equal to its object's box halves many cells of the box's mask exactly. Rounding, which
# differs between eager execution, graphs and XLA, would decide them, so samples lie on a grid.
SNAP = 2.0**-13


@dataclasses.dataclass(frozen=True)
class RoIAlign:
    """Pools boxes from the finest levels of a pyramid, with the arguments of `roi_align`."""

    sampling_ratio: int = 2
    aligned: bool = True
    num_levels: int = 4
    min_level: int = 2

    def __call__(
        self,
        maps: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        *,
        output_size: int,
        static: bool = False,
        training: bool = False,
    ) -> tf.Tensor:
        """Pools boxes float32 [N, 4] to [N, output_size, output_size, C], see `model.view.View`."""
        return roi_align(
            maps[: self.num_levels],
            boxes,
            image_index,
            output_size=output_size,
            sampling_ratio=self.sampling_ratio,
            static=static,
            training=training,
            aligned=self.aligned,
            min_level=self.min_level,
        )


def assign_levels(rois: tf.Tensor, min_level: int, max_level: int) -> tf.Tensor:
    """Computes the pyramid level to pool each RoI from (FPN, CVPR 2017, equation 1).

    Args:
        rois: float32 [N, 4] in pixels.
        min_level: finest level.
        max_level: coarsest level.

    Returns:
        int32 [N], ⌊4 + log2(√area / 224)⌋ clamped to the existing levels.
    """
    sides = tf.maximum(rois[:, 2:] - rois[:, :2], 0.0)
    size = tf.sqrt(sides[:, 0] * sides[:, 1])
    # The epsilon makes the logarithm finite for a RoI without area.
    level = CANONICAL_LEVEL + tf.math.log(size / CANONICAL_SIZE + 1e-8) / np.log(2.0).astype("f")
    return tf.clip_by_value(tf.cast(tf.floor(level), tf.int32), min_level, max_level)


@in_scope("roi_align")
def roi_align(
    pyramid: Sequence[tf.Tensor],
    rois: tf.Tensor,
    image_index: tf.Tensor,
    *,
    output_size: int,
    sampling_ratio: int,
    static: bool,
    training: bool = True,
    aligned: bool = True,
    min_level: int = 2,
    levels: tf.Tensor | None = None,
) -> tf.Tensor:
    """Pools each RoI from the level that suits its size.

    Args:
        pyramid: the levels to pool from, finest first, [B, H_l, W_l, C] each.
        rois: float32 [N, 4] in pixels; no gradient flows to them.
        image_index: int32 [N], the image of each RoI.
        output_size: bins along a side.
        sampling_ratio: samples along a side of a bin; 0 means as many as it has cells.
        static: whether to use gathers that XLA can compile instead of one op per level.
        training: whether to gather in the way that has a fast gradient instead of the one that is
            itself fast and needs little memory.
        aligned: whether to move the RoIs by half a cell.
        min_level: level of `pyramid[0]`, which has stride 2 ** min_level.
        levels: int32 [N], positions in `pyramid`, to be used instead of the sizes.

    Returns:
        [N, output_size, output_size, C] in the dtype of the pyramid.

    Raises:
        ValueError: `static` with `sampling_ratio` 0, for which the number of samples is not static.
    """
    if static and sampling_ratio == 0:
        raise ValueError(
            "sampling_ratio 0 takes as many samples as a RoI has cells, which is not static."
        )
    rois = tf.stop_gradient(rois)
    if levels is None:
        levels = assign_levels(rois, min_level, min_level + len(pyramid) - 1) - min_level
    strides = [2 ** (min_level + level) for level in range(len(pyramid))]
    where = (pyramid, strides, levels, rois, image_index, output_size, sampling_ratio, aligned)
    return _pool_static(*where, training) if static else _pool_by_level(*where)


def _corner_and_side(rois, stride, aligned):
    """Returns a RoI's first corner and its sides on the map: [N, 2] (y, x) each, in cells."""
    shift = 0.5 if aligned else 0.0
    corner = rois[:, :2] / stride - shift
    # The difference of the moved edges, as in the references, because rounding decides the number
    # of samples if a side is nearly a whole number of cells.
    side = rois[:, 2:] / stride - shift - corner
    return corner, side if aligned else tf.maximum(side, 1.0)


def _pool_by_level(
    pyramid, strides, levels, rois, image_index, output_size, sampling_ratio, aligned
):
    members = tf.dynamic_partition(tf.range(tf.shape(rois)[0]), levels, len(pyramid))
    pooled = [
        _pool_level(
            features,
            *_corner_and_side(tf.gather(rois, member), stride, aligned),
            tf.gather(image_index, member),
            output_size,
            sampling_ratio,
        )
        for features, stride, member in zip(pyramid, strides, members, strict=True)
    ]
    pooled = tf.dynamic_stitch(members, pooled)
    return tf.cast(pooled, pyramid[0].dtype)


def _pool_level(features, corner, side, image_index, output_size, sampling_ratio):
    # With a border of one repeated cell, CropAndResize behaves like RoIAlign at the edges.
    features = _warn_of_races(tf.cast(features, tf.float32))
    padded = tf.pad(features, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")
    if sampling_ratio == 0:
        return _pool_adaptively(padded, corner, side, image_index, output_size)
    samples = output_size * sampling_ratio
    step = side / samples
    crops = _sample_lattices(padded, corner + 0.5 * step, step, image_index, samples)
    return tf.nn.avg_pool2d(crops, sampling_ratio, sampling_ratio, "VALID")


def _sample_lattices(padded, first, step, image_index, samples):
    """Samples lattices; for these boxes CropAndResize takes exactly RoIAlign's samples.

    Args:
        padded: the map with a border of one cell.
        first: [T, 2], the first sample in cells of the map without its border.
        step: [T, 2], cells between samples.
        image_index: int32 [T].
        samples: along each side.

    Returns:
        [T, samples, samples, C].
    """
    extent = tf.constant([padded.shape[1] - 1.0, padded.shape[2] - 1.0])
    boxes = tf.concat([(first + 1.0) / extent, (first + 1.0 + step * (samples - 1)) / extent], -1)
    return tf.image.crop_and_resize(padded, boxes, image_index, [samples, samples])


def _pool_adaptively(padded, corner, side, image_index, output_size):
    """Averages lattices of one sample per bin, as many for each RoI as its bins have samples.

    All bins of a RoI have their samples at the same offsets, so the a-th sample of the rows and the
    b-th of the columns of all bins form a lattice with a spacing of one bin, which CropAndResize
    samples at once. A RoI of h × w cells has ⌈h / output_size⌉ · ⌈w / output_size⌉ of them: the
    samples held at a time are about as many as the RoIs have cells, 4 to 16 for each bin at full
    size.
    """
    count = tf.shape(side)[0]
    bins = side / output_size
    per_axis = tf.maximum(tf.cast(tf.math.ceil(bins), tf.int32), 0)
    per_roi = per_axis[:, 0] * per_axis[:, 1]
    roi = tf.repeat(tf.range(count), per_roi)
    number = tf.range(tf.size(roi)) - tf.gather(tf.cumsum(per_roi, exclusive=True), roi)
    across = tf.gather(per_axis[:, 1], roi)
    place = tf.cast(tf.stack([number // across, number % across], -1), tf.float32)
    step = tf.gather(bins, roi)
    share = (place + 0.5) / tf.cast(tf.gather(per_axis, roi), tf.float32)
    first = tf.gather(corner, roi) + share * step
    crops = _sample_lattices(padded, first, step, tf.gather(image_index, roi), output_size)
    total = tf.math.unsorted_segment_sum(crops, roi, count)
    return total / tf.cast(tf.maximum(per_roi, 1), tf.float32)[:, None, None, None]


def make_gradient_exact() -> None:
    """Prepares this process for training on a CPU: makes TensorFlow's ops deterministic.

    Otherwise CPU threads race in CropAndResizeGradImage and lose updates. On a CPU this costs
    nothing measurable; GPU kernels add atomically and do not need it.
    """
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


@tf.custom_gradient
def _warn_of_races(features: tf.Tensor):
    """Returns the features; warns if their gradient is taken without `make_gradient_exact`."""

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        if not (is_op_determinism_enabled() or tf.config.list_physical_devices("GPU")):
            print(
                "Warning: the gradient of RoIAlign loses updates if several CPU threads compute "
                "it; call tf.config.experimental.enable_op_determinism() first.",
                file=sys.stderr,
            )
        return upstream

    return tf.identity(features), gradient


def _pool_static(
    pyramid, strides, levels, rois, image_index, output_size, sampling_ratio, aligned, training
):
    """Gathers the four neighbours of every sample from the flattened pyramid."""
    shapes = np.array([level.shape[1:3] for level in pyramid], np.int32)
    cells = np.prod(shapes, axis=1)
    starts = np.concatenate([[0], np.cumsum(cells)[:-1]]).astype(np.int32)
    flat = tf.concat(
        [tf.reshape(p, [p.shape[0], n, p.shape[3]]) for p, n in zip(pyramid, cells, strict=True)], 1
    )
    flat = tf.reshape(flat, [-1, flat.shape[2]])

    stride = tf.gather(tf.constant(strides, tf.float32), levels)[:, None]
    corner, side = _corner_and_side(rois, stride, aligned)
    samples = output_size * sampling_ratio
    centres = tf.range(samples, dtype=tf.float32) + 0.5
    positions = corner[:, None, :] + centres[None, :, None] * (side / samples)[:, None, :]
    sizes = tf.gather(tf.constant(shapes), levels)
    count = rois.shape[0] if rois.shape[0] is not None else tf.shape(rois)[0]
    taps = [count, output_size, 2 * sampling_ratio]
    rows, row_weights = neighbours(positions[..., 0], sizes[:, 0], sampling_ratio, taps)
    columns, column_weights = neighbours(positions[..., 1], sizes[:, 1], sampling_ratio, taps)
    start = tf.gather(tf.constant(starts), levels) + image_index * int(cells.sum())
    rows = start[:, None, None] + rows * sizes[:, None, None, 1]
    combine = _combine_at_once if training else combine_by_tap
    return combine(flat, rows, columns, row_weights, column_weights)


def _combine_at_once(flat, rows, columns, row_weights, column_weights):
    """Computes the sum by one gather and one product, whose gradient is one scatter."""
    index = rows[:, :, :, None, None] + columns[:, None, None, :, :]
    corners = tf.gather(flat, index)
    row_weights, column_weights = (
        tf.cast(weights, flat.dtype) for weights in (row_weights, column_weights)
    )
    return tf.einsum("niajbc,nia,njb->nijc", corners, row_weights, column_weights)


def combine_by_tap(flat, rows, columns, row_weights, column_weights):
    """Computes the same sum term by term, fused into passes that store only the result.

    Args:
        flat: [cells, C], maps as one list.
        rows: int32 [N, bins, taps], the first cell of each row that a bin reads.
        columns: int32 [N, bins, taps], the columns that it reads.
        row_weights, column_weights: float32 of the same shapes.

    Returns:
        [N, bins, bins, C] in the dtype of the maps.
    """
    total = 0.0
    for row, column in itertools.product(range(rows.shape[2]), range(columns.shape[2])):
        corners = tf.gather(flat, rows[:, :, None, row] + columns[:, None, :, column])
        weights = row_weights[:, :, None, row] * column_weights[:, None, :, column]
        total += tf.cast(corners, tf.float32) * weights[..., None]
    return tf.cast(total, flat.dtype)


def neighbours(position, size, sampling_ratio, shape):
    """Finds the two cells next to each sample along one axis, and their weights.

    Args:
        position: float32 [N, S] in cells.
        size: int32 [N] or [1], cells of the RoI's level.
        sampling_ratio: samples per bin along the axis.
        shape: shape of the results, [N, bins, 2 sampling_ratio].

    Returns:
        int32 and float32, neighbours of one sample side by side.
    """
    size = size[:, None]
    limit = tf.cast(size, tf.float32)
    inside = tf.cast((position >= -1.0) & (position <= limit), tf.float32) / sampling_ratio
    position = tf.clip_by_value(position, 0.0, limit - 1.0)
    low = tf.cast(tf.floor(position), tf.int32)
    high = tf.minimum(low + 1, size - 1)
    fraction = position - tf.cast(low, tf.float32)
    indices = tf.reshape(tf.stack([low, high], -1), shape)
    weights = tf.stack([(1.0 - fraction) * inside, fraction * inside], -1)
    return indices, tf.reshape(weights, shape)


def ends_in_cells(
    boxes: tf.Tensor, windows: tf.Tensor, cells: int, axis: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds where boxes begin and end, along one axis, on arrays of `cells` cells over windows.

    Args:
        boxes: float32 [N, 4] in pixels.
        windows: float32 [N, 4] in pixels.
        cells: number of cells of the arrays along the axis; cell j covers [j, j + 1).
        axis: 0 for rows, 1 for columns.

    Returns:
        Two float32 [N], in cells. They are exact if cells are pixels.
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
    """Computes RoIAlign's weight of each cell of a row for each bin of an interval, along one axis.

    A bin averages ⌈side / bins⌉ linear interpolations between the centres of the cells, or
    2 ⌈cells / bins⌉ if that is less: an interval that half overlaps the row is no longer than
    twice the row. A sample within half a cell of the row's end takes the value of the last cell,
    and one outside the row counts 0.

    Args:
        start: float32 [N], where the interval begins, in cells; cell j covers [j, j + 1).
        stop: float32 [N], where it ends.
        bins: equal parts the interval is cut into.
        cells: cells of the row.
        shift: assumed position of the centre of cell 0.
        snapped: bool [N], intervals whose samples are moved to the nearest multiple of `SNAP`
            cells.

    Returns:
        float32 [N, bins, cells]; the weights of a bin within the row add up to 1.
    """
    most = 2 * -(-cells // bins)
    first = start - shift
    # The difference of the moved ends, as in the references, so that the counts are equal.
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
