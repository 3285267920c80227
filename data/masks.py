"""Crops and areas of instance masks, computed directly from COCO run lengths.

No full-size mask is drawn for them. A record holds the run lengths of all its instances one after
another: column by column, first a run of zeros, then ones, zeros ... Each instance's runs sum to
height x width, so the cumulative sum over all instances is one sorted list of run ends in which
instance n occupies the positions [n h w, (n + 1) h w), and a pixel belongs to the object when an
odd number of its instance's runs have ended at or before it.

Axes: N windows, I instances in the record, R runs of all instances, M mask side, T run ends that
lie inside sampled columns.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# 2^0 ... 2^63 and 2^64 modulo 2^64, as signed words.
_POWERS_OF_TWO = (
    np.append(np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64)), 0)
    .astype(np.uint64)
    .view(np.int64)
)
# The eight bits of each octet as eight bytes of 0 or 1, lowest bit first, in one word.
_CELLS_OF_OCTET = np.unpackbits(
    np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
).view(np.int64)[:, 0]


def sample_pixels(starts: tf.Tensor, stops: tf.Tensor, size: int, length: tf.Tensor) -> tf.Tensor:
    """Finds the pixels under the centres of `size` equal cells between two coordinates of an axis.

    Args:
        starts: float32 [N], the lower ends in original pixels.
        stops: float32 [N], the upper ends.
        size: cells, M.
        length: int64 scalar, image side along this axis.

    Returns:
        int64 [N, M] in [0, length), not decreasing along the last axis.
    """
    centres = (tf.range(size, dtype=tf.float32) + 0.5) / size
    positions = starts[:, None] + centres * (stops - starts)[:, None]
    return tf.clip_by_value(tf.cast(tf.floor(positions), tf.int64), 0, length - 1)


def crop_masks(
    run_lengths: tf.Tensor,
    num_runs: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    windows: tf.Tensor,
    instances: tf.Tensor,
    size: int,
    flip_vertical: tf.Tensor | bool = False,
    flip_horizontal: tf.Tensor | bool = False,
) -> tf.Tensor:
    """Samples instance masks at the centres of a grid of cells laid over each window.

    Cell (i, j) takes the mask's value at the pixel that holds the cell's centre, that is y =
    floor(y1 + (i + 0.5) / M (y2 - y1)) and x likewise, clipped to the image. Looking up every
    sample costs N M^2 binary searches (88,000 for 7 instances), and drawing whole masks costs N h
    w. But along a sampled column the value changes only where a run ends. So the runs that end in
    each column are looked up (2 N M searches), and each toggles the value from the first sampled
    row at or below it. This is three times as fast for 8 instances, and seven times for 100.

    Args:
        run_lengths: int64 [R], column-major run lengths of all instances, zeros first.
        num_runs: int64 [I], runs of each instance.
        height, width: int64 scalars, size of the original image in pixels.
        windows: float32 [N, 4], [y1, x1, y2, x2] in original pixels.
        instances: int64 [N], the instance each window shows.
        size: side of the crops, M.
        flip_vertical, flip_horizontal: bool scalars, whether to mirror the crops.

    Returns:
        uint8 [N, M, M] of 0 and 1.
    """
    rows = sample_pixels(windows[:, 0], windows[:, 2], size, height)
    columns = sample_pixels(windows[:, 1], windows[:, 3], size, width)
    columns = tf.where(flip_horizontal, columns[:, ::-1], columns)

    run_ends = tf.cumsum(run_lengths)
    column_starts = tf.reshape((instances[:, None] * width + columns) * height, [-1])
    ended_before = tf.searchsorted(run_ends, column_starts, "right", tf.int64)
    ended_within = tf.searchsorted(run_ends, column_starts + height, "left", tf.int64)
    toggles = tf.ragged.range(
        ended_before, ended_within
    )  # range of runs that end inside each column

    column_of_toggle = toggles.value_rowids()
    window_of_toggle = column_of_toggle // size
    toggle_rows = tf.gather(run_ends, toggles.values) - tf.gather(column_starts, column_of_toggle)
    row_keys = tf.reshape(rows + tf.range(tf.shape(rows, tf.int64)[0])[:, None] * height, [-1])
    toggle_cells = tf.searchsorted(
        row_keys, window_of_toggle * height + toggle_rows, "left", tf.int64
    )
    toggle_cells -= window_of_toggle * size

    first_runs = tf.gather(tf.cumsum(num_runs, exclusive=True), instances)
    ends_ones = (toggles.values - tf.gather(first_runs, window_of_toggle)) & 1
    starts_in = tf.where(flip_vertical, ended_within, ended_before)
    starts_as_one = (starts_in - tf.repeat(first_runs, size)) & 1
    # A mirrored column has its toggles in reverse: the end of a run of ones becomes its start.
    toggle_cells = tf.where(flip_vertical, size - toggle_cells, toggle_cells)
    signs = tf.where(flip_vertical, 1 - 2 * ends_ones, 2 * ends_ones - 1)

    drawn = _draw_columns(starts_as_one, column_of_toggle, toggle_cells, signs, size)
    return tf.transpose(tf.reshape(drawn, [-1, size, size]), [0, 2, 1])


def _draw_columns(
    starts_as_one: tf.Tensor,
    column_of_toggle: tf.Tensor,
    toggle_cells: tf.Tensor,
    signs: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Draws columns of cells, 64 to a machine word, from where their runs of ones start and end.

    Ones in the bits [a, b) of a word are the number 2^b - 2^a, so a column is the sum of its
    toggles: +2^b where ones end, -2^a where they start, modulo 2^64. A running sum over the cells
    would take most of the time of a crop.

    Args:
        starts_as_one: int64 [C], 1 for columns whose first cell precedes any toggle as a one.
        column_of_toggle: int64 [T] in [0, C).
        toggle_cells: int64 [T] in [0, size], the first cell that a toggle affects.
        signs: int64 [T], 1 where ones end, -1 where they start.
        size: cells in a column.

    Returns:
        uint8 [C, size] of 0 and 1.
    """
    num_words = -(-size // 64)
    bits = tf.clip_by_value(toggle_cells[:, None] - 64 * tf.range(num_words, dtype=tf.int64), 0, 64)
    words = tf.math.unsorted_segment_sum(
        signs[:, None] * tf.gather(_POWERS_OF_TWO, bits),
        column_of_toggle,
        tf.shape(starts_as_one)[0],
    )
    words -= starts_as_one[:, None]
    octets = tf.cast(tf.bitcast(words, tf.uint8), tf.int32)
    cells = tf.bitcast(tf.gather(_CELLS_OF_OCTET, octets), tf.uint8)
    return tf.reshape(cells, [-1, 64 * num_words])[:, :size]


def draw_union(
    run_lengths: tf.Tensor,
    num_runs: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    instances: tf.Tensor,
) -> tf.Tensor:
    """Draws the pixels that belong to any of several instances.

    Args:
        run_lengths: int64 [R], as in `crop_masks`.
        num_runs: int64 [I].
        height, width: int64 scalars, size of the original image in pixels.
        instances: int64 [N], those to draw.

    Returns:
        uint8 [height, width] of 0 and 1.
    """
    first_runs = tf.gather(tf.cumsum(num_runs, exclusive=True), instances)
    runs = tf.ragged.range(first_runs, first_runs + tf.gather(num_runs, instances))
    instance_of_run = tf.gather(instances, runs.value_rowids())
    ends = tf.gather(tf.cumsum(run_lengths), runs.values) - instance_of_run * height * width
    # Ones start where a run of zeros ends, and every second run, from the first on, is of zeros.
    ends_ones = (runs.values - tf.gather(first_runs, runs.value_rowids())) & 1
    open_objects = tf.cumsum(
        tf.math.unsorted_segment_sum(
            tf.cast(1 - 2 * ends_ones, tf.int32), ends, height * width + 1
        )[:-1]
    )
    return tf.transpose(tf.reshape(tf.cast(open_objects > 0, tf.uint8), [width, height]))


def mask_areas(
    run_lengths: tf.Tensor,
    num_runs: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    rectangle: tf.Tensor,
) -> tf.Tensor:
    """Counts each instance's mask pixels inside a rectangle of the image.

    With F(p) the number of rectangle pixels among the first p of an image in column-major order,
    a run of ones over [p, q) contributes F(q) - F(p).

    Args:
        run_lengths: int64 [R], as in `crop_masks`.
        num_runs: int64 [I].
        height, width: int64 scalars, size of the original image in pixels.
        rectangle: int64 [4], [y1, x1, y2, x2] in whole pixels within the image.

    Returns:
        int64 [I].
    """
    top, left, bottom, right = tf.unstack(rectangle)
    instance_of_run = tf.repeat(tf.range(tf.shape(num_runs, tf.int64)[0]), num_runs)
    ends = tf.cumsum(run_lengths) - instance_of_run * height * width

    def rectangle_pixels_before(positions: tf.Tensor) -> tf.Tensor:
        x, y = positions // height, positions % height
        whole_columns = (tf.clip_by_value(x, left, right) - left) * (bottom - top)
        in_column = tf.clip_by_value(y, top, bottom) - top
        return whole_columns + tf.where((x >= left) & (x < right), in_column, 0)

    inside = rectangle_pixels_before(ends) - rectangle_pixels_before(ends - run_lengths)
    first_run = tf.gather(tf.cumsum(num_runs, exclusive=True), instance_of_run)
    is_ones = (tf.range(tf.shape(run_lengths, tf.int64)[0]) - first_run) & 1
    return tf.math.segment_sum(inside * is_ones, instance_of_run)
