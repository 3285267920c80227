"""RoI max pooling on one map (Girshick, Fast R-CNN, ICCV 2015, section 2.1).

Axes: B images, H W rows and columns of the map, C channels, N RoIs of all images, S bins along a
side of a RoI.

The ends of a RoI are rounded to whole cells, and both cells belong to it: with start =
round(y1 / stride) and stop = round(y2 / stride), half a cell away from zero, its side is
max(stop - start + 1, 1) cells. Bin i covers the cells from start + ⌊i side / S⌋ to
start + ⌈(i + 1) side / S⌉, so neighbouring bins may share a row. Bins are clipped to the map, and
a bin without cells is 0.

The definition comes from Caffe, where a box's y2 is the number of its last pixel. Here y2 is the
coordinate where the box ends, one more. The formula is applied to the numbers as they are, as by
torchvision's `roi_pool` with spatial_scale = 1 / stride: a difference of 1 / stride of a cell.

The maximum of an interval is the larger one of two windows that cover it, whose length is the
largest power of two that fits. The maxima of all such windows are computed first, so each bin needs
four of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from model.scopes import in_scope
from model.static import Static


@dataclasses.dataclass(frozen=True)
class RoIPool:
    """Pools boxes from one map by their maxima.

    Attributes:
        stride: pixels of the image along a side of a cell.
        level: position of the map among those that it is given.
    """

    stride: int = 16
    level: int = 0

    def __call__(
        self,
        maps: Sequence[tf.Tensor],
        boxes: tf.Tensor,
        image_index: tf.Tensor,
        *,
        output_size: int,
        static: bool | Static = False,
        training: bool = False,
    ) -> tf.Tensor:
        """Pools boxes float32 [N, 4] to [N, output_size, output_size, C], see `model.view.View`."""
        return roi_pool(
            maps[self.level],
            boxes,
            image_index,
            stride=self.stride,
            output_size=output_size,
            static=static,
        )


@in_scope("roi_pool")
def roi_pool(
    features: tf.Tensor,
    rois: tf.Tensor,
    image_index: tf.Tensor,
    *,
    stride: int,
    output_size: int,
    static: bool | Static = False,
) -> tf.Tensor:
    """Takes the maximum of each bin of each RoI.

    The gradient of a bin flows to its largest cell, the first one in row-major order if several are
    equal. None flows to the RoIs.

    Args:
        features: the map, [B, H, W, C].
        rois: float32 [N, 4] in pixels.
        image_index: int32 [N], the image of each RoI.
        stride: pixels along a side of a cell.
        output_size: bins along a side.
        static: `Static.PORTABLE` avoids a conditional that saves memory.

    Returns:
        [N, output_size, output_size, C] in the dtype of the map.
    """
    size = features.shape[1:3]
    bins = find_bins(tf.stop_gradient(rois), size, stride, output_size)
    is_empty = (bins.lengths[:, 0, :, None] <= 0) | (bins.lengths[:, 1, None, :] <= 0)

    def maxima(*entries: tf.Tensor) -> list[tf.Tensor]:
        """Looks the bins up in tables that are as large as they need to be."""
        # A bin of ⌈side / S⌉ + 1 cells is the longest of RoIs within the map.
        usual = [min(1 - (-(side + 1) // output_size), side) for side in size]
        if static == Static.PORTABLE or usual == list(size):
            return _look_up(entries, bins, image_index, size)
        is_usual = tf.reduce_all(bins.lengths <= tf.constant(usual)[:, None])
        return tf.cond(
            is_usual,
            lambda: _look_up(entries, bins, image_index, usual),
            lambda: _look_up(entries, bins, image_index, size),
        )

    @tf.custom_gradient
    def pool(features):
        (values,) = maxima(features)

        def gradient(upstream):
            _, cells = maxima(features, _number_cells(features))
            return _send_to_cells(upstream, cells, is_empty, image_index, features)

        return tf.where(is_empty[..., None], tf.zeros([], values.dtype), values), gradient

    return pool(features)


class Bins(NamedTuple):
    """The cells of each RoI's bins along the rows (0) and the columns (1), clipped to the map.

    Attributes:
        starts: int32 [N, 2, S], the first cell.
        lengths: int32 [N, 2, S], the number of cells; zero or less if there are none.
    """

    starts: tf.Tensor
    lengths: tf.Tensor


def find_bins(rois: tf.Tensor, size: Sequence[int], stride: int, output_size: int) -> Bins:
    """Divides RoIs, float32 [N, 4] in pixels, into bins on a map of `size` [H, W] cells."""
    ends = _round_half_away(rois / stride)
    first = ends[:, :2, None]
    side = tf.maximum(ends[:, 2:, None] - first + 1, 1)
    bins = tf.range(output_size)
    limits = tf.constant(list(size))[:, None]
    starts = tf.clip_by_value(first + bins * side // output_size, 0, limits)
    stops = tf.clip_by_value(first - (-(bins + 1) * side // output_size), 0, limits)
    return Bins(starts, stops - starts)


def _round_half_away(x: tf.Tensor) -> tf.Tensor:
    """Rounds to int32 as C does; TensorFlow rounds halves to even numbers."""
    whole = tf.floor(tf.abs(x))
    return tf.cast(tf.sign(x) * (whole + tf.cast(tf.abs(x) - whole >= 0.5, x.dtype)), tf.int32)


def _look_up(entries, bins: Bins, image_index, longest: Sequence[int]) -> list[tf.Tensor]:
    """Finds the largest entry of each bin.

    Args:
        entries: the map and, if needed, the numbers of its cells; [B, H, W, C] each.
        bins: where to look; the result for a bin without cells is arbitrary.
        image_index: int32 [N].
        longest: the largest number of cells of a bin along rows and columns.

    Returns:
        [N, S, S, C] for each of the entries.
    """
    batch, (height, width, channels) = tf.shape(entries[0])[0], entries[0].shape[1:]
    num_rows, num_columns = (cells.bit_length() for cells in longest)
    tables = [
        table
        for rows in _double_windows(entries, num_rows, axis=1)
        for table in _double_windows(rows, num_columns, axis=2)
    ]
    flat = [tf.reshape(tf.concat(parts, 0), [-1, channels]) for parts in zip(*tables, strict=True)]
    levels, firsts, lasts = _cover(bins, [num_rows, num_columns], [height, width])
    one_table = batch * height * width
    image = image_index[:, None] * height * width + levels[:, 0] * num_columns * one_table
    rows = [(image + ends[:, 0] * width)[:, :, None] for ends in (firsts, lasts)]
    columns = [(levels[:, 1] * one_table + ends[:, 1])[:, None, :] for ends in (firsts, lasts)]
    windows = [[tf.gather(x, row + column) for x in flat] for row in rows for column in columns]
    return _larger(_larger(*windows[:2]), _larger(*windows[2:]))


def _double_windows(entries, count: int, axis: int) -> list[Sequence[tf.Tensor]]:
    """Returns the largest entries of windows of 1, 2, 4 … cells that start at each cell.

    A window that leaves the map goes on at its other side; no bin uses it.
    """
    windows = [entries]
    for level in range(count - 1):
        shifted = [tf.roll(x, -(2**level), axis) for x in windows[-1]]
        windows.append(_larger(windows[-1], shifted))
    return windows


def _cover(bins: Bins, counts: Sequence[int], size: Sequence[int]):
    """Covers each bin by two windows along each axis.

    Returns:
        The binary logarithm of the windows' length and the first cells of both, int32 [N, 2, S].
    """
    powers = tf.constant([2**level for level in range(1, max(counts))], tf.int32)
    level = tf.reduce_sum(tf.cast(bins.lengths[..., None] >= powers, tf.int32), -1)
    last = bins.starts + bins.lengths - tf.bitwise.left_shift(tf.ones_like(level), level)
    limits = tf.constant(list(size))[:, None] - 1
    return level, tf.minimum(bins.starts, limits), tf.clip_by_value(last, 0, limits)


def _larger(ours: Sequence[tf.Tensor], theirs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Keeps the larger values; of equal ones, those of the cells with the smaller numbers."""
    values = tf.maximum(ours[0], theirs[0])
    if len(ours) == 1:
        return [values]
    is_first = (theirs[0] == ours[0]) & (theirs[1] < ours[1])
    return [values, tf.where((theirs[0] > ours[0]) | is_first, theirs[1], ours[1])]


def _number_cells(features: tf.Tensor) -> tf.Tensor:
    """Numbers the cells of each image in row-major order: float32 [B, H, W, C].

    They are not int32, which TensorFlow moves to the memory of the host of a GPU.
    """
    height, width = features.shape[1:3]
    numbers = tf.reshape(tf.range(height * width, dtype=tf.float32), [1, height, width, 1])
    return tf.broadcast_to(numbers, tf.shape(features))


def _send_to_cells(upstream, cells, is_empty, image_index, features) -> tf.Tensor:
    """Adds each bin's gradient, [N, S, S, C], to the cell of its maximum."""
    height, width, channels = features.shape[1:]
    image = image_index[:, None, None, None] * height * width
    place = (image + tf.cast(cells, tf.int32)) * channels + tf.range(channels)
    # Negative places are dropped.
    place = tf.where(is_empty[..., None], -1, place)
    total = tf.math.unsorted_segment_sum(
        tf.cast(tf.reshape(upstream, [-1]), tf.float32),
        tf.reshape(place, [-1]),
        tf.size(features),
    )
    return tf.cast(tf.reshape(total, tf.shape(features)), features.dtype)
